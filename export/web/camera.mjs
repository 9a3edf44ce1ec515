/** A camera that runs between two presses of a button, and never while the page is hidden. */

const REASONS = {
  NotAllowedError: "This page may not use the camera: the browser's settings for this site allow it",
  NotFoundError: "There is no camera on this device",
  OverconstrainedError: "There is no camera on this device",
  NotReadableError: "The camera cannot be read: another program may use it",
};
const PAUSE_MS = 60; // between two pictures, so that the page stays usable

/**
 * `video` shows the pictures; `look` is called with each, one after the other, until `stop`. `changed(on)` is told of
 * every start and stop, `failed(error)` of a picture that `look` refused.
 */
export class Camera {
  #video;
  #look;
  #changed;
  #failed;
  #wanted = 0; // grows with every start and stop: an answer to an older request is not taken

  constructor(video, { look, changed, failed }) {
    [this.#video, this.#look, this.#changed, this.#failed] = [video, look, changed, failed];
    document.addEventListener("visibilitychange", () => document.hidden && this.stop());
    addEventListener("pagehide", () => this.stop());
  }

  get on() {
    return this.#video.srcObject !== null;
  }

  /** Asks for the camera. Throws an Error with the reason where there is none or it is not allowed. */
  async start() {
    const mine = ++this.#wanted;
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("This browser gives a camera to pages over https and on localhost only");
    }
    const wishes = { video: { facingMode: { ideal: "environment" } }, audio: false };
    const stream = await navigator.mediaDevices.getUserMedia(wishes).catch((error) => {
      throw new Error(REASONS[error.name] ?? `The camera does not start: ${error.message}`);
    });
    if (mine !== this.#wanted || document.hidden) {
      for (const track of stream.getTracks()) track.stop();
      return;
    }
    for (const track of stream.getTracks()) track.onended = () => this.stop(); // it was unplugged
    this.#video.srcObject = stream;
    this.#changed(true);
    await this.#video.play().catch(() => null); // it was stopped before it played
    this.#watch(mine);
  }

  stop() {
    this.#wanted++;
    if (!this.on) return;
    for (const track of this.#video.srcObject.getTracks()) track.stop();
    this.#video.srcObject = null;
    this.#changed(false);
  }

  async #watch(mine) {
    try {
      while (mine === this.#wanted) {
        if (this.#video.videoWidth) await this.#look(this.#video);
        await new Promise((done) => setTimeout(done, PAUSE_MS));
      }
    } catch (error) {
      if (mine !== this.#wanted) return;
      this.stop();
      this.#failed(error);
    }
  }
}

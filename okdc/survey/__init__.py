"""What is asked before a training: `okdc new` makes a recipe for a folder, `okdc check` tries a recipe.

folder.look          the images of a folder: classes, splits, sizes, files with the same content      Folder
    │
networks.choose      networks for them, pretrained where weights are at hand, within a budget         Networks
    ▼
plan.plan            the keys of a recipe, each with its reason                                       Plan
    │
writing.text         the recipe as a TOML file

    check.check            a recipe as a training would begin it, timed; duplicates.find: images that occur twice
"""

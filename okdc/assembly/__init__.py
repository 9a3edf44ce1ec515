"""From a recipe, or from a run, to objects: the only room that knows data, networks and methods together.

    recipe.toml, KEY=VALUE
        │  recipe.draft.load       read, overrides applied            Draft: tables that nothing has checked
        ▼
    resolve.resolve                every problem at once, or          ResolvedRecipe: tables with every default,
        │                                                             the method's class and Config, the Source
        ▼
    job.job
        ├─ assemble                built once, before the images      Assembly: method around its cohort, teacher
        ├─ read (dataset)          decoded and divided                Dataset
        └─ normalisation_of        recipe, published, or measured     Normalisation: mean and std
        ▼
    Job                            everything that a training needs, on the CPU

    run directory
        ├─ reopen.recipe_of        its recipe, resolved again         ResolvedRecipe
        ├─ reopen.data_of          its images, proven the same        Dataset
        └─ student.load            a student, its files proven        Student

Only where nobody can tell the number of classes without the images (your own loader) are the images read first.
student.py reads a student's files, teacher.py a frozen teacher's.
"""

"""A benchmark of rules: what is run, one CSV for each rule, and the page that is made of the CSVs.

    declared = commandline.call("digits", "get_benchmark", default="all")
    for entry in declare.entries(declared): ...        # the runs, as points of a grid

In this folder: `declare` says what a benchmark is, `validation` which examples parameters are chosen on, `tuning` chooses
them, `rows` has the CSVs, `standing` what is said of each rule, `ranks` what ranks tell apart, `page` writes it down.
"""

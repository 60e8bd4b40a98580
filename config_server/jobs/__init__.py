"""Long operations that survive anything: each a list of steps, of which the journal (store/journal.py) knows which were begun.

kinds     what a kind of job is: steps that are done and undone, looked for again
runner    claims jobs whose time it is, and drives them, for as long as it has them
janitor   looks once more at what was undone, for what came late
"""

"""Configuration files for people: what can be set, and what is wrong with one. All is taken from the Structs by which they are read. Pure.

    shape    of what a configuration is made     keys    its keys, with types, defaults and explanations
    words    a key in words                      page    all keys as a table for the documentation
    sample   a file in which each is explained   wrong   why a file is refused

Reading one is `shared.daemon.service.load_config`.
"""

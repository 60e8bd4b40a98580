"""Configuration files: what is wrong with one, in words (`wrong`). Reading one is `shared.service.load_config`."""

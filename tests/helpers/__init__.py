"""What several tests share: tiny models, made-up weights, commands that are run."""

"""Programs for people who work on the project: the environment, new teams and dags, ownership."""

"""Files written atomically, a locked folder, YAML with line numbers, schemas, progress."""

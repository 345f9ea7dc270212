"""Files written atomically, locked folders, YAML with line numbers, the base class of schemas, sizes, progress."""

"""From a YAML file to checked token ids: schema, rules, template, draw, tokenize."""

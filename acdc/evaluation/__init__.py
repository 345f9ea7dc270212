"""How good a circuit is: faithfulness, intervals, ranking, competence, and what explains it."""

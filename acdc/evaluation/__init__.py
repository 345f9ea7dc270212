"""How good a circuit is: faithfulness, intervals, ranking, competence, explanation."""

"""How well settings do: metrics, the evaluator, engines, the store, the measurer."""

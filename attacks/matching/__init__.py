"""Images by optimisation: one search, put together anew by each method.

A method is an objective (`objectives`) on what is looked for (`unknowns`), an optimiser with a
schedule (`optimisers`, `schedules`), and a rule to stop (`search`); `attack` wraps it in restarts.
"""

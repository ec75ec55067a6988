"""The recorder's deciding code in a simulated world: a clock that jumps, a dictionary for a database, and every kind of fault.

python -m tests.simulated --seed 12345            one history, printed line by line, and its end
python -m tests.simulated --histories 100000      that many, in as many processes as there are cores
"""

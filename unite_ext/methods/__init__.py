"""The methods that decide a step or choose an answer: UNITE and those it is compared with."""

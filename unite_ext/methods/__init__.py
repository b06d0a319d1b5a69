"""What decides a step: UNITE and the methods it is compared with."""

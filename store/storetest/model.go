package storetest

import "testing"

func runModel(t *testing.T, newMachine func(t *testing.T) Machine) {}

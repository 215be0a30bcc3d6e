//go:build race

package main

// raced: the race detector would take many minutes for the documented fleet.
const raced = true

//go:build !race

package faults

// raceDetector says that this test was built with it.
const raceDetector = false

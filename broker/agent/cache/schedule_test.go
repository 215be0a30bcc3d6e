package cache

import (
	"math/rand/v2"
	"testing"
	"time"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func TestRenewal(t *testing.T) {
	const last = 1 - 1e-9
	tests := []struct {
		name             string
		life             time.Duration
		earliest, latest time.Duration
	}{
		{"a long life is renewed between half and 85 % of it", 12 * time.Hour, 6 * time.Hour, 10*time.Hour + 12*time.Minute},
		{"the last minute is kept free", 4 * time.Minute, 3 * time.Minute * 50 / 85, 3 * time.Minute},
		{"a life under two minutes is renewed before its half is over", 90 * time.Second, 45 * time.Second * 50 / 85, 45 * time.Second},
		{"no life is due at once", 0, 0, 0},
		{"an end before the beginning is due at once", -time.Hour, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Renewal(noon, noon.Add(test.life), 0).Sub(noon).Round(time.Millisecond); got != test.earliest.Round(time.Millisecond) {
				t.Errorf("earliest after %s, want %s", got, test.earliest)
			}
			if got := Renewal(noon, noon.Add(test.life), last).Sub(noon).Round(time.Millisecond); got != test.latest.Round(time.Millisecond) {
				t.Errorf("latest after %s, want %s", got, test.latest)
			}
		})
	}
}

func TestRenewalIsSpreadEvenly(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const draws, parts = 10_000, 10
	var counts [parts]int
	for range draws {
		share := float64(Renewal(noon, noon.Add(time.Hour), random.Float64()).Sub(noon)) / float64(time.Hour)
		counts[int((share-earliestRenewal)/(latestRenewal-earliestRenewal)*parts)]++
	}
	for part, n := range counts {
		if n < draws/parts*8/10 || n > draws/parts*12/10 {
			t.Errorf("tenth %d of the time has %d of %d renewals", part, n, draws)
		}
	}
}

func TestPause(t *testing.T) {
	tests := []struct {
		name     string
		failures int
		whole    time.Duration
	}{
		{"a second after the first failure", 1, time.Second},
		{"doubled after the second", 2, 2 * time.Second},
		{"and so on", 6, 32 * time.Second},
		{"up to a minute", 7, time.Minute},
		{"and no longer", 1 << 40, time.Minute},
		{"no failure counts as one", 0, time.Second},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Pause(test.failures, 0); got != test.whole/2 {
				t.Errorf("shortest is %s, want %s", got, test.whole/2)
			}
			if got := Pause(test.failures, 1-1e-12).Round(time.Microsecond); got != test.whole {
				t.Errorf("longest is %s, want %s", got, test.whole)
			}
		})
	}
}

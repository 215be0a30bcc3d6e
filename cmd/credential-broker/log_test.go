package main

import (
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

func TestAJournalThatNobodyEmptiesIsWaitedForOnce(t *testing.T) {
	began := make(chan struct{}, 10)
	never := make(chan struct{})
	defer close(never)
	log := slog.New(fanOut{slog.DiscardHandler, journalHandler{
		patience: time.Millisecond, stuck: new(atomic.Bool),
		send: func(string, journal.Priority, map[string]string) error {
			began <- struct{}{}
			<-never
			return nil
		},
	}})
	log.Info("one")
	log.With("provider", "p").Info("two")
	log.Info("three")
	<-began
	if len(began) > 0 {
		t.Error("a second record was sent to a journal that is stuck")
	}
}

func TestTheJournalGetsTheLineWithItsPriority(t *testing.T) {
	var got string
	log := slog.New(journalHandler{patience: time.Minute, stuck: new(atomic.Bool), send: func(message string, priority journal.Priority, _ map[string]string) error {
		got = message
		if priority != journal.PriWarning {
			t.Errorf("priority %d", priority)
		}
		return nil
	}})
	log.With("provider", "p").Warn("provider failed", "ms", 3)
	if want := `msg="provider failed" provider=p ms=3`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if strings.Contains(got, "\n") {
		t.Error("more than one line")
	}
}

package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

func TestAJournalThatNobodyEmptiesIsWaitedForOnce(t *testing.T) {
	began := make(chan struct{}, 10)
	never := make(chan struct{})
	stuck := new(atomic.Int64)
	defer close(never)
	log := slog.New(fanOut{slog.DiscardHandler, journalHandler{
		patience: time.Millisecond, stuck: stuck,
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
	stuck.Add(-int64(journalPause)) // a minute later
	log.Info("four")
	<-began
}

func TestTheJournalGetsTheLineWithItsPriority(t *testing.T) {
	var got string
	log := slog.New(journalHandler{patience: time.Minute, stuck: new(atomic.Int64), send: func(message string, priority journal.Priority, _ map[string]string) error {
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

func TestALogFileThatIsMovedAwayIsBegunAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.log")
	file, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &rotatedFile{path: path, file: file, looked: time.Now()}
	defer r.close()
	write := func(line string) {
		t.Helper()
		if _, err := r.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	r.looked = time.Time{} // a second later
	write("two\n")
	r.looked = time.Time{}
	write("three\n")
	for path, want := range map[string]string{path + ".1": "one\n", path: "two\nthree\n"} {
		if got, err := os.ReadFile(path); string(got) != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
}

//go:build unix

package plugin

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// TestWhatIsInThePipeIsHandedOnWithoutWaiting writes to a pipe whose reader was never started, and whose writing end stays open, as a killed backend's does for a while.
func TestWhatIsInThePipeIsHandedOnWithoutWaiting(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var got bytes.Buffer
	tap := &tap{from: r, to: &got}
	for _, words := range []string{"", "last words\n", strings.Repeat("x", 20<<10)} {
		if _, err := w.WriteString(words); err != nil {
			t.Fatal(err)
		}
		tap.catchUp()
		if got.String() != words {
			t.Errorf("%.20q of %d bytes was handed on, not %.20q of %d", got.String(), got.Len(), words, len(words))
		}
		got.Reset()
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		tap.run()
	}()
	if _, err := w.WriteString("more"); err != nil {
		t.Fatal(err)
	}
	tap.catchUp()
	tap.mu.Lock()
	if got.String() != "more" {
		t.Errorf("with a reader: %q was handed on", got.String())
	}
	tap.mu.Unlock()
	w.Close()
	<-done
	r.Close()
	tap.catchUp() // a pipe that is closed holds nothing
}

// TestWordsThatWaitInThePipeAreReadWhenTheTimeForThemIsOver is a backend that has printed and ended on a machine too busy to have read anything before the deadline.
func TestWordsThatWaitInThePipeAreReadWhenTheTimeForThemIsOver(t *testing.T) {
	c := &child{exited: make(chan struct{}), drained: make(chan struct{})}
	c.greeting, c.handshake = io.Pipe()
	output := newOutput()
	c.stdout, c.stderr = output.stream("stdout"), output.stream("stderr")
	f, err := c.pipes()
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []*os.File{f.stdoutWrite, f.stderrWrite} { // held open, as by something that the backend has left behind
		t.Cleanup(func() { _ = end.Close() })
		if _, err := end.WriteString("last words\n"); err != nil {
			t.Fatal(err)
		}
	}
	c.tap = &tap{from: f.stderr, to: c.stderr}
	over := time.Now().Add(-time.Second)
	if err := errors.Join(f.stdout.SetReadDeadline(over), f.stderr.SetReadDeadline(over)); err != nil {
		t.Fatal(err)
	}
	c.drain(f)
	if words, _ := output.lastWords(nil); strings.Count(words, "last words") != 2 {
		t.Errorf("of what was printed on standard output and error, %q is left", words)
	}
	_, _ = f.stdin.Close(), c.lifeline.Close()
}

// TestASurvivorThatNeverStopsWritingIsReadNoLongerThanTheDeadline has the pipe never empty.
func TestASurvivorThatNeverStopsWritingIsReadNoLongerThanTheDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	full := strings.Repeat("x", 8<<10)
	if _, err := w.WriteString(full); err != nil {
		t.Fatal(err)
	}
	const most = maxPending >> 13 // reads of that size before the deadline is looked at
	rounds := 0
	tap := &tap{from: r, to: writerFunc(func(b []byte) (int, error) {
		rounds++
		switch _, err := w.WriteString(full[:len(b)]); { // as much again, while the pipe is not empty yet
		case err != nil:
			t.Error(err)
		case rounds == 10:
			err = r.SetReadDeadline(time.Now().Add(-time.Second))
			if err != nil {
				t.Error(err)
			}
		case rounds == 10+4*most: // it would go on for ever
			w.Close()
		}
		return len(b), nil
	})}
	tap.run()
	w.Close()
	if rounds > 10+most {
		t.Errorf("%d rounds after the deadline", rounds-10)
	}
}

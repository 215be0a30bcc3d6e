//go:build unix

package plugin

import (
	"bytes"
	"os"
	"strings"
	"testing"
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

package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/broker/install"
)

func TestStatusSaysWhatIsToBeDecidedAndIsReadyAllTheSame(t *testing.T) {
	dir := t.TempDir()
	configuration := filepath.Join(dir, "configs", "0123456789ab")
	if err := errors.Join(os.MkdirAll(configuration, 0o755), os.WriteFile(filepath.Join(configuration, "config.yaml"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join("configs", "0123456789ab"), filepath.Join(dir, "config")); err != nil {
		t.Skip("no symbolic links here: ", err)
	}
	i := &install.Installer{Dir: dir, Log: slog.New(slog.DiscardHandler)}
	o := &options{state: filepath.Join(t.TempDir(), "state"), log: i.Log}
	for _, tt := range []struct {
		note string
		err  error
		says bool
	}{{i.Unclaimed(), nil, true}, {i.Unclaimed(), errors.New("and a mistake"), true}, {"", nil, false}} {
		o.report(i, tt.err, tt.note, "")
		var out bytes.Buffer
		err := o.readStatus(&out)
		if (err != nil) != (tt.err != nil) || err != nil && err.Error() != tt.err.Error() {
			t.Errorf("got the error %v, want %v", err, tt.err)
		}
		if says := strings.Contains(out.String(), "note: no configuration is given any more"); says != tt.says {
			t.Errorf("status says %q", out.String())
		}
	}
}

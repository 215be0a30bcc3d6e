package config

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestLookSeesWhatChangesAConfiguration(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(file, "one")
	before := Look(dir)
	if !Look(dir).Equal(before) {
		t.Fatal("nothing has changed")
	}
	for _, change := range []struct {
		what string
		do   func()
	}{
		{"a file grows", func() { write(file, "longer") }},
		{"a file is replaced by one of the same size and time", func() {
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			write(file+".new", "LONGER")
			if err := os.Chtimes(file+".new", info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		}},
		{"a file comes", func() { write(filepath.Join(dir, "b.json"), "") }},
		{"a file goes", func() { _ = os.Remove(file) }},
		{"the directory goes", func() { _ = os.RemoveAll(dir) }},
	} {
		change.do()
		after := Look(dir)
		if after.Equal(before) {
			t.Errorf("%s, and nothing is seen of it", change.what)
		}
		before = after
	}
}

func TestAVersionIsSettledOnceTheFileSystemCanTellAChange(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	written := time.Now()
	if Look(file).Settled(written) {
		t.Error("what was written this moment counts as settled")
	}
	if !Look(file).Settled(written.Add(time.Second)) {
		t.Error("what was written a second ago does not count as settled")
	}
}

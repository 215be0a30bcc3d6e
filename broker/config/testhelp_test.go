package config

import (
	"os"
	"path/filepath"
	"testing"
)

const head = "apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\n"

// load reads the texts as files of one directory, which the messages of the result leave out.
func load(t *testing.T, texts ...string) (*Config, error) {
	t.Helper()
	l := newLoader()
	for i, text := range texts {
		file := string(rune('a'+i)) + ".yaml"
		l.config.Sources = append(l.config.Sources, file)
		l.add(file, []byte(text))
	}
	c, problems := l.finish()
	if len(problems) > 0 {
		return nil, problems
	}
	return c, nil
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

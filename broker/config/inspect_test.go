package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInspectGivesTheProvidersWithNothingWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := head + `overlapPolicy: Never
providers:
- {name: broken, matchImages: [registry.example], timeout: -1s}
- {name: sound, matchImages: [registry.example]}
- {name: broken-too, matchImages: []}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, problems := Inspect(file)
	if len(problems) != 3 {
		t.Errorf("problems:\n%v", problems)
	}
	var names []string
	for _, p := range c.Providers {
		names = append(names, p.Name)
	}
	if diff := cmp.Diff([]string{"sound"}, names); diff != "" {
		t.Errorf("providers (-want +got):\n%s", diff)
	}
	if c, err := Load(file); c != nil || err == nil {
		t.Errorf("Load gave %v and error %v", c, err)
	}
}

//go:build linux

package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// generations counts the changes of what answers: place is the latest that may be seen, and settled the latest that has to be.
type generations struct{ placed, settled atomic.Int64 }

// pull makes a request and makes sure that one whole generation answers it, one that was there while it was under way. Each of the keys is answered by the generation that reads its password.
func (g *generations) pull(n *node, image string, keys int, read func(password string) string) (outcome, error) {
	earliest := g.settled.Load()
	o := n.pull(image, "")
	passwords, err := o.passwords()
	if err != nil {
		return o, err
	}
	seen := map[string]bool{}
	for _, password := range passwords {
		seen[read(password)] = true
	}
	if len(passwords) != keys || len(seen) != 1 {
		return o, fmt.Errorf("the answer is of more than one generation, or not whole: %v", passwords)
	}
	for generation := range seen {
		of, err := strconv.ParseInt(generation, 10, 64)
		if latest := g.placed.Load(); err != nil || of < earliest || of > latest {
			return o, fmt.Errorf("generation %q answers, where it was one from %d to %d", generation, earliest, latest)
		}
	}
	return o, nil
}

// generationOf is what a configuration says of itself in a password.
func generationOf(password string) string {
	generation, _, _ := strings.Cut(password, "|")
	return generation
}

// twoFiles is a configuration in two files, of three providers that all know its generation.
func (n *node) twoFiles(generation int64) (first, second string) {
	of := strconv.FormatInt(generation, 10)
	file := func(more object, providers ...object) string {
		return string(must(json.Marshal(n.with(object{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "providers": providers}, more))))
	}
	return file(object{"timeout": "58s", "log": object{"format": "json"}}, n.whose("first", "WHOSE_GENERATION", of, "WHOSE_KEYS", "registry.example registry.example/team")),
		file(nil, n.whose("second", "WHOSE_GENERATION", of, "WHOSE_KEYS", "registry.example registry.example/team/app"), n.whose("third", "WHOSE_GENERATION", of))
}

func (n *node) oneFile(generation int64) string {
	first, second := n.twoFiles(generation)
	var one, other object
	if err := json.Unmarshal([]byte(first), &one); err != nil {
		n.Fatal(err)
	}
	if err := json.Unmarshal([]byte(second), &other); err != nil {
		n.Fatal(err)
	}
	one["providers"] = append(one["providers"].([]any), other["providers"].([]any)...)
	return string(must(json.Marshal(one)))
}

// generationKeys is how many auth keys each of these configurations answers: three providers, one key of which two share.
const generationKeys = 4

func TestTheConfigurationIsChangedUnderLoad(t *testing.T) {
	broken := []func(string) string{
		func(text string) string { return text[:len(text)/2] },
		func(string) string { return "" },
		func(text string) string { return strings.Replace(text, `"timeout"`, `"timeuot"`, 1) },
		func(text string) string { return strings.Replace(text, `"first"`, `"third"`, 1) },
	}
	for name, form := range map[string]struct {
		changes int
		// place puts a configuration in the place of the one before; spoil makes it a broken one, or is nil.
		place func(n *node, generation int64, spoil func(string) string)
		conf  string
	}{
		"a file is renamed into place": {40, func(n *node, generation int64, spoil func(string) string) {
			n.replace(n.conf, []byte(spoil(n.oneFile(generation))), 0o600)
		}, "config.json"},
		"a file is written in place": {30, func(n *node, generation int64, spoil func(string) string) {
			n.write("config.json", spoil(n.oneFile(generation)), 0o600)
		}, "config.json"},
		"a directory's files are exchanged as a ConfigMap's": {30, func(n *node, generation int64, spoil func(string) string) {
			n.configMap(n.conf, generation, spoil)
		}, "config.d"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.conf = filepath.Join(n.dir, form.conf)
			whole := func(text string) string { return text }
			var g generations
			g.placed.Store(1)
			form.place(n, 1, whole)
			g.settled.Store(1)
			a := n.start(command{})
			l := n.loaded(6, func(worker, turn int) (outcome, error) {
				return g.pull(n, fmt.Sprintf("registry.example/team/app/%d-%d", worker, turn%3), generationKeys, generationOf)
			})
			for change := range form.changes {
				if change%3 == 2 {
					before, _ := n.status()
					form.place(n, 0, broken[change/3%len(broken)])
					if s, _ := n.status(); s.PID != before.PID {
						t.Errorf("the agent was pid %d and is %d", before.PID, s.PID)
					}
					o, err := g.pull(n, anImage+"/new-"+strconv.Itoa(change), generationKeys, generationOf)
					if err != nil {
						t.Errorf("change %d, a broken one: %v", change, err)
					}
					if o.isCold() {
						t.Errorf("change %d, a broken one: the agent was not asked: %s", change, o.stderr)
					}
					if s, ok := n.status(); !ok || s.Configurations[0].Refused == "" {
						t.Errorf("change %d: status says nothing about the broken configuration", change)
					}
					continue
				}
				generation := g.placed.Add(1)
				form.place(n, generation, whole)
				g.settled.Store(generation)
				if _, err := g.pull(n, anImage+"/next", generationKeys, generationOf); err != nil {
					t.Errorf("right after change %d: %v", change, err)
				}
				if s, ok := n.status(); !ok || s.Configurations[0].Refused != "" {
					t.Errorf("change %d: status says that it is broken: %v", change, s.Configurations)
				}
			}
			l.stop()
			t.Logf("%d requests answered by the agent, %d without", l.warm.Load(), l.cold.Load())
			if l.cold.Load() > 0 {
				t.Errorf("%d requests found the agent wanting", l.cold.Load())
			}
			if said := strings.Count(n.logged(), "is broken: the one before serves on"); said < form.changes/3 {
				t.Errorf("the log speaks of %d broken configurations, there were %d", said, form.changes/3)
			}
			a.end()
			n.nothingLeft()
		})
	}
}

// configMap puts two files into a directory as the kubelet mounts a ConfigMap: links to files below ..data, which is a link to a directory, exchanged at once.
func (n *node) configMap(dir string, generation int64, spoil func(string) string) {
	n.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.Fatal(err)
	}
	data, err := os.MkdirTemp(dir, "..2026_")
	if err != nil {
		n.Fatal(err)
	}
	first, second := n.twoFiles(generation)
	for name, content := range map[string]string{"first.json": spoil(first), "second.json": second} {
		if err := os.WriteFile(filepath.Join(data, name), []byte(content), 0o600); err != nil {
			n.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			n.Fatal(err)
		}
	}
	before, _ := os.Readlink(filepath.Join(dir, "..data"))
	if err := os.Symlink(filepath.Base(data), filepath.Join(dir, "..data_tmp")); err != nil {
		n.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		n.Fatal(err)
	}
	if before != "" {
		_ = os.RemoveAll(filepath.Join(dir, before))
	}
}

func TestABackendsFileIsReplacedUnderLoad(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	program, err := os.ReadFile(misbehavePath())
	if err != nil {
		t.Fatal(err)
	}
	var g generations
	place := func() {
		generation := g.placed.Add(1)
		n.replace(filepath.Join(n.backends, "credential-backend-misbehave"), append(slices.Clip(program), fmt.Sprintf("\x00@%-7d", generation)...), 0o755)
		g.settled.Store(generation)
	}
	stampOf := func(password string) string {
		_, stamp, _ := strings.Cut(generationOf(password), "@")
		return stamp
	}
	place()
	n.config(nil, n.whose("replaced", "WHOSE_LIFE", "0"))
	a := n.start(command{})
	l := n.loaded(6, func(worker, _ int) (outcome, error) {
		return g.pull(n, fmt.Sprintf("%s/%d", anImage, worker), 1, stampOf)
	})
	for change := range times(15) {
		l.more(6)
		place()
		if _, err := g.pull(n, anImage, 1, stampOf); err != nil {
			t.Errorf("right after replacement %d: %v", change, err)
		}
	}
	l.stop()
	t.Logf("%d requests answered by the agent, %d without", l.warm.Load(), l.cold.Load())
	if l.cold.Load() > 0 {
		t.Errorf("%d requests found the agent wanting", l.cold.Load())
	}
	a.end()
	n.nothingLeft()
}

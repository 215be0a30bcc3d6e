package config

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/image"
)

func FuzzLoad(f *testing.F) {
	f.Add([]byte(head + "timeout: 30s\nproviders:\n- name: a\n  matchImages: [x.io, '*.y.io:5000/z']\n  env:\n  - {name: A, value: b}\n  user: 0\n  config: {a: [1, 2.50, ~], b: |\n    x\n  }\n"))
	f.Add([]byte(head + "log: {level: info}\nagent: {socket: /a, metrics: '127.0.0.1:1'}\nproviders: [&p {name: a, matchImages: &m [x.io]}, *p]\n"))
	f.Add([]byte("{\"apiVersion\":\"" + APIVersion + "\",\"kind\":\"" + Kind + "\",\n\t\"providers\":[{\"name\":\"a\",\"matchImages\":[\"x.io\"],\"mirrors\":[{\"source\":\"a.io\",\"endpoint\":\"b.io\"}]}]}"))
	f.Add([]byte(head + "providers:\n- name: a\n  matchImages: [x.io]\n  tokenAttributes:\n    serviceAccountTokenAudience: x\n    requiredServiceAccountAnnotationKeys: [a.b/c]\n  sha256: [\"\"]\n  <<: *x\n"))
	f.Add([]byte("%YAML 1.2\n---\n? a\n: !!str b\n...\n--- |\n x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLoader()
		l.config.Sources = []string{"f.yaml"}
		l.add("f.yaml", data)
		c, problems := l.finish()
		lines := strings.Count(string(data), "\n") + 1
		inFile := func(p Problem) {
			if p.File != "f.yaml" || p.Line < 1 || p.Line > lines || p.Column < 0 || p.Message == "" {
				t.Errorf("a problem without its place in %d lines: %+v", lines, p)
			}
		}
		if len(problems) > 0 {
			for _, p := range problems {
				inFile(p)
			}
			return
		}
		for _, p := range c.Warnings {
			inFile(p)
		}
		for _, p := range c.Overlaps() {
			inFile(p)
		}
		if c.Timeout <= 0 || c.Timeout > MaxTimeout || len(c.Providers) == 0 {
			t.Errorf("not valid: %+v", c)
		}
		names := map[string]bool{}
		for i, p := range c.Providers {
			if p.Name == "" || names[p.Name] || p.Backend == "" || len(p.MatchImages) == 0 || p.Timeout <= 0 {
				t.Errorf("not valid: %+v", p)
			}
			names[p.Name] = true
			for _, pattern := range p.MatchImages {
				if _, err := image.ParsePattern(pattern); err != nil {
					t.Error(err)
				}
			}
			var settings map[string]json.RawMessage
			if err := json.Unmarshal(p.Config, &settings); err != nil || settings == nil {
				t.Errorf("config is no JSON object: %s (%v)", p.Config, err)
			}
			if at := c.Position(p.Name, ""); at != p.At {
				t.Errorf("provider %d is at %s and at %s", i, at, p.At)
			}
			for name := range settings {
				file, line, _ := strings.Cut(c.Position(p.Name, "config."+name), ":")
				if n, err := strconv.Atoi(line); err != nil || file != "f.yaml" || n < 1 || n > lines {
					t.Errorf("config.%s is at %s:%s", name, file, line)
				}
			}
		}
	})
}

const fourProviders = head + `timeout: 45s
overlapPolicy: First
log:
  level: info
providers:
- name: ecr
  backend: ecr
  matchImages: ["*.dkr.ecr.*.amazonaws.com"]
  defaultCacheDuration: 6h
  timeout: 15s
  env:
  - {name: AWS_REGION, value: eu-west-1}
  inheritEnv: ["AWS_*"]
- name: gar
  matchImages:
  - "*.pkg.dev"
  - gcr.io
  - "*.gcr.io"
  defaultCacheDuration: 30m
- name: docker
  backend: dockerconfig
  matchImages: [docker.io, "registry.example:5000/team"]
  config:
    file: /etc/docker/config.json
- name: token
  backend: exec
  matchImages: ["*.azurecr.io"]
  tokenAttributes:
    serviceAccountTokenAudience: sts.example
    cacheType: Token
  config:
    command: /usr/bin/plugin
    args: [a, b]
`

// A pull pays this each time: 0.15 ms of processor time were measured (4,000 runs, user and system), against the bound of 0.5 ms that was set for it.
func BenchmarkLoadFourProviders(b *testing.B) {
	file := b.TempDir() + "/config.yaml"
	if err := os.WriteFile(file, []byte(fourProviders), 0o600); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(file); err != nil {
			b.Fatal(err)
		}
	}
}

// Hostile files of a quarter of the full size: each is read, or refused, in time linear in its length. The limit is far above what any takes, for busy machines; time that
// grows with the square of the length would pass it by far.
func TestNoFileTakesLongToRead(t *testing.T) {
	const inside = head + "providers: [{name: a, matchImages: [x], config: {a: "
	for _, tt := range []struct{ start, unit string }{
		{"", "["},
		{"", "- "},
		{"", "{a: "},
		{"", "&a "},
		{"", "*a "},
		{"", "\""},
		{"", "a:\n"},
		{"", "a: |\n  b\n"},
		{"", "? a\n: b\n"},
		{"", "---\n"},
		{"", "#\n"},
		{"", "x "},
		{head + "providers:\n", "- &a b\n"},
		{head + "providers:\n", "- {a: b}\n"},
		{inside, "[a],"},
		{inside, "[a,"},
		{inside, "a,"},
		{inside, "x\n"},
	} {
		data := []byte(tt.start + strings.Repeat(tt.unit, (maxFileSize/4-len(tt.start))/len(tt.unit)))
		began := time.Now()
		l := newLoader()
		l.config.Sources = []string{"f.yaml"}
		l.add("f.yaml", data)
		_, _ = l.finish()
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%q after %q took %v", tt.unit, tt.start, took)
		}
	}
}

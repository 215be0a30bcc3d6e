package main

import (
	"strings"
	"testing"
)

func TestImageArgumentIsWhatTheKubeletWouldAskFor(t *testing.T) {
	for given, want := range map[string]string{
		"nginx":                               "docker.io/library/nginx",
		"nginx:1.27":                          "docker.io/library/nginx",
		"team/app":                            "docker.io/team/app",
		"docker.io/nginx":                     "docker.io/library/nginx",
		"index.docker.io/library/nginx":       "docker.io/library/nginx",
		"registry.example/app:v1":             "registry.example/app",
		"registry.example:5000/app":           "registry.example:5000/app",
		"registry.example:5000/app:v1":        "registry.example:5000/app",
		"registry.example/app@sha256:0123":    "registry.example/app",
		"registry.example/app:v1@sha256:0123": "registry.example/app",
		"localhost/app":                       "localhost/app",
		"REGISTRY/app":                        "REGISTRY/app",
		"[::1]:5000/app:v1":                   "[::1]:5000/app",
	} {
		got, err := imageArgument(given)
		if err != nil || got != want {
			t.Errorf("%s: got %q (error %v), want %q", given, got, err, want)
		}
	}
}

func TestImageArgumentThatIsNoImage(t *testing.T) {
	for given, want := range map[string]string{
		"https://registry.example/app": "leave out",
		"registry.example/a b":         "",
		"":                             "names no image",
		":v1":                          "names no image",
		"registry.example/":            "names no image",
		"registry.example/:v1":         "names no image",
		"/app":                         "names no image",
	} {
		_, err := imageArgument(given)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", given, err, want)
		}
	}
}

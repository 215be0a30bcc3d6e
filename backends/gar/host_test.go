package gar

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends"
)

func TestHostsOfGoogle(t *testing.T) {
	for image, want := range map[string]registry{
		"europe-west1-docker.pkg.dev/my-project/repo/app":              {host: "europe-west1-docker.pkg.dev", location: "europe-west1", project: "my-project", repository: "repo"},
		"us-docker.pkg.dev/my-project/repo/a/b/c":                      {host: "us-docker.pkg.dev", location: "us", project: "my-project", repository: "repo"},
		"us-docker.pkg.dev/example.com/my-project/repo/app":            {host: "us-docker.pkg.dev", location: "us", project: "example.com:my-project", repository: "repo"},
		"us-docker.pkg.dev:443/my-project/repo/app":                    {host: "us-docker.pkg.dev:443", location: "us", project: "my-project", repository: "repo"},
		"US-docker.pkg.dev/my-project/repo/app":                        {host: "US-docker.pkg.dev", location: "us", project: "my-project", repository: "repo"},
		"docker.europe-west1.rep.pkg.dev/my-project/repo/app":          {host: "docker.europe-west1.rep.pkg.dev", location: "europe-west1", project: "my-project", repository: "repo"},
		"gcr.io/my-project/app":                                        {host: "gcr.io", project: "my-project", container: true},
		"eu.gcr.io/example.com/my-project/team/app":                    {host: "eu.gcr.io", project: "example.com:my-project", container: true},
		"container.cloud.google.com/my-project/app":                    {host: "container.cloud.google.com", project: "my-project", container: true},
		"u-france-east1-docker.s3nsregistry.fr/s3ns:my/repo/app":       {host: "u-france-east1-docker.s3nsregistry.fr", universe: "s3nsapis.fr", project: "s3ns:my", repository: "repo"},
		"europe-west1-docker.pkg.dev/my-project":                       {host: "europe-west1-docker.pkg.dev", location: "europe-west1", project: "my-project"},
		"europe-west1-docker.pkg.dev/example.com/my-project/repo/team": {host: "europe-west1-docker.pkg.dev", location: "europe-west1", project: "example.com:my-project", repository: "repo"},
	} {
		got, ok := parseHost(backends.Image(image), []string{"*-docker.s3nsregistry.fr"}, "s3nsapis.fr")
		if want.universe == "" {
			want.universe = "googleapis.com"
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(registry{})); !ok || diff != "" {
			t.Errorf("%s: known: %t; %s", image, ok, diff)
		}
	}
}

func TestHostsOfOthers(t *testing.T) {
	for _, image := range []string{
		"registry.example/app", "pkg.dev/app", "docker.pkg.dev/p/r/a", "-docker.pkg.dev/p/r/a", "us-python.pkg.dev/p/r/a", "us-docker.pkg.dev.example/p/r/a", "a.us-docker.pkg.dev/p/r/a",
		"us_x-docker.pkg.dev/p/r/a", "docker.rep.pkg.dev/p/r/a", "npm.us.rep.pkg.dev/p/r/a", "a.docker.us.rep.pkg.dev/p/r/a", "xgcr.io/p/a", "a.b.gcr.io/p/a", "gcr.io.example/p/a", ".gcr.io/p/a",
		"us-docker.pkg.dev:5000/p/r/a", "gcr.io:80/p/a", "storage.googleapis.com/p/a", "google.com/p/a", "x.container.cloud.google.com/p/a",
		"evil.example.s3nsregistry.fr/p/r/a", "x.u-docker.s3nsregistry.fr/p/r/a", "u-python.s3nsregistry.fr/p/r/a",
		"u-docker.s3nsreg\u0130stry.fr/p/r/a", "gcr.\u0130o/p/a", "\u212aus-docker.pkg.dev/p/r/a", "$(x)-docker.s3nsregistry.fr/p/r/a", "a'b-docker.s3nsregistry.fr/p/r/a", "gcr.io./p/a", "[::1]:443/p/a", "/p/a", "",
	} {
		if got, ok := parseHost(backends.Image(image), []string{"*-docker.s3nsregistry.fr"}, "s3nsapis.fr"); ok {
			t.Errorf("%s is taken for %+v", image, got)
		}
	}
}

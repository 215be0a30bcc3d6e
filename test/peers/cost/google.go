package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// Who pulls from Google, and what.
const (
	garHost  = "europe-west1-docker.pkg.dev"
	garImage = garHost + "/my-project/repo/app"
	garNode  = "node@my-project.iam.gserviceaccount.com"
	garHuman = "somebody@example.com"
)

// The names under which results are compared, with an identity at their end.
const (
	withGAR   = "credential-broker, backend gar, "
	gcrHelper = "docker-credential-gcr, "
	garStart  = "the Google backend's start alone"
	ecrAlone  = "one image, the ECR provider alone"
	garAlone  = "one image, the Google provider alone"
	together  = "one image, both providers"
)

var (
	garGoals  = goals{1, 0.9}
	bothGoals = goals{1.35, 1.2}
)

// google measures the backend for Google's registries beside ECR's, Google's own credential helper, and both backends for one image.
func (b *bench) google(rounds int) error {
	b.all = nil
	keys, instance := b.cloud.Identities[0], b.cloud.Identities[1]
	beside := make([]struct{ google, ecr identity }, len(b.cloud.Google))
	for i, id := range b.cloud.Google {
		if beside[i].ecr = instance; id.File != nil { // the cloud is asked by TLS, as ECR is with keys
			beside[i].ecr = keys
		}
		var err error
		if beside[i].google, err = b.withFile(id); err != nil {
			return err
		}
	}
	b.start(empty, emptyProgram)
	b.start(backend, program.ECRBackend, "--version")
	b.start(garStart, program.GARBackend, "--version")
	whole := func(name, image string, id identity, providers ...map[string]any) error {
		config, err := b.providers(fmt.Sprintf("google-%d.json", len(b.all)), providers...)
		if err != nil {
			return err
		}
		b.all = append(b.all, &measured{name: name, cmd: func() *exec.Cmd {
			cmd, _ := b.command(id, image, program.Broker, "--config", config) // a request that can be written
			return cmd
		}})
		return nil
	}
	forECR := map[string]any{"name": "ecr", "matchImages": []string{hosts}, "inheritEnv": []string{"AWS_*"}}
	forGAR := map[string]any{"name": "gar", "matchImages": []string{garHost}, "inheritEnv": []string{"GOOGLE_*", "GCE_*"}}
	for _, id := range []identity{keys, instance} {
		if err := whole(ours+id.Name, image, id, forECR); err != nil {
			return err
		}
	}
	for _, beside := range beside {
		id := beside.google
		if err := whole(withGAR+id.Name, garImage, id, forGAR); err != nil {
			return err
		}
		b.all = append(b.all, &measured{name: gcrHelper + id.Name, cmd: func() *exec.Cmd {
			cmd := exec.Command(b.path(program.GCRLogin), "get")
			cmd.Env, cmd.Stdin = b.environment(id), strings.NewReader("https://"+garHost)
			return cmd
		}})
	}
	// No host is in both clouds: that of ECR is given to the Google backend as one of Google's, so that both ask for a token.
	login := beside[1].google
	both := identity{Env: append(slices.Clone(login.Env), keys.Env...)}
	forAny := map[string]any{
		"name": "gar", "matchImages": []string{hosts}, "inheritEnv": []string{"GOOGLE_*"}, "config": map[string]any{"hosts": []string{host}, "universeDomain": "googleapis.com"},
	}
	for _, c := range []struct {
		name      string
		providers []map[string]any
	}{{ecrAlone, []map[string]any{forECR}}, {garAlone, []map[string]any{forAny}}, {together, []map[string]any{forECR, forAny}}} {
		if err := whole(c.name, image, both, c.providers...); err != nil {
			return err
		}
	}
	if err := b.measure(rounds); err != nil {
		return err
	}
	byName := b.byName()
	for _, m := range b.all {
		if len(m.work) > 1 {
			fmt.Fprintf(b.out, "the cloud's work, %s: %v\n", m.name, m.work)
		}
	}
	fmt.Fprintln(b.out)
	b.table()
	slower := ecrAlone
	if median(byName[garAlone].took) > median(byName[ecrAlone].took) {
		slower = garAlone
	}
	for _, c := range beside {
		b.compare("gar, "+c.google.Name+" × ecr, "+c.ecr.Name, withGAR+c.google.Name, ours+c.ecr.Name, garGoals)
		b.compare("gar × docker-credential-gcr, "+c.google.Name, withGAR+c.google.Name, gcrHelper+c.google.Name, "")
	}
	b.compare("both providers × the slower one alone", together, slower, bothGoals)
	return nil
}

// withFile writes the identity's file, if it has one, and gives it with the variable that names that.
func (b *bench) withFile(id identity) (identity, error) {
	if id.File == nil {
		return id, nil
	}
	file := filepath.Join(b.dir, "identity of "+id.Name)
	id.Env = append(slices.Clone(id.Env), id.FileFrom+"="+file)
	return id, os.WriteFile(file, id.File, 0o600)
}

// providers writes a broker configuration with these.
func (b *bench) providers(name string, all ...map[string]any) (string, error) {
	data, err := json.Marshal(map[string]any{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "providers": all})
	if err != nil {
		return "", err
	}
	file := filepath.Join(b.dir, name)
	return file, os.WriteFile(file, data, 0o600)
}

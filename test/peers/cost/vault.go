package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// What is pulled with credentials of Vault's, and where they are.
const (
	vaultHost   = "harbor.example"
	vaultImage  = vaultHost + "/team-a/app"
	vaultSecret = "secret/registries/" + vaultHost
	vaultMade   = "rabbitmq/creds/pull"
	vaultIssuer = "https://kubernetes.default.svc"
	vaultRole   = "image-puller"
)

// The names under which results are compared, with a way to a credential at their end.
const (
	withVault       = "credential-broker, backend vault, "
	vaultClient     = "a plain client of Vault's library, "
	vaultTidy       = "one that gives its login back, "
	vaultStart      = "the Vault backend's start alone"
	plainVaultStart = "a plain client's start alone"
)

var vaultGoals = goals{goal: 1.9}

// vaultProgram is what Vault's library is used for by hand.
var vaultProgram = program.Own("vault-direct", "./cost/vault-direct")

// vaultWay is a login and a secret, for both.
type vaultWay struct {
	name string
	// plain are the plain client's arguments, and ours our provider's settings.
	plain []string
	ours  map[string]any
	// token is the pod's, if that logs in.
	token string
	// kept: the login is left as it is by both: a lease hangs on it, or it is one that cannot be given back.
	kept bool
}

// vaultWays sets a server up, and gives the ways to its secrets.
func (b *bench) vaultWays(s *vaultserver.Server) ([]vaultWay, error) {
	c, err := cloud.Start(cloud.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close() // the server is given the issuer's keys
	s.KV2("secret")
	s.Put("secret", strings.TrimPrefix(vaultSecret, "secret/"), map[string]any{"username": "robot", "password": "pw-of-harbor"})
	made := s.RabbitMQ("rabbitmq")
	made.Role("pull", nil)
	s.Policy("reader", `path "secret/data/registries/*" { capabilities = ["read"] }`+"\n"+`path "`+vaultMade+`" { capabilities = ["read"] }`)
	policies := []string{"reader"}

	appRole := func(role string, settings map[string]any) (plain []string, ours map[string]any, err error) {
		roleID, secretID := s.AppRole("approle", role, policies, settings)
		file := filepath.Join(b.dir, "secret ID of "+role)
		return []string{"-auth", "approle", "-role-id", roleID, "-secret-id-file", file}, map[string]any{"method": "approle", "roleID": roleID, "secretIDFile": file}, os.WriteFile(file, []byte(secretID), 0o600)
	}
	plain, ours, err := appRole("node", nil)
	if err != nil {
		return nil, err
	}
	plainBatch, oursBatch, err := appRole("batch", map[string]any{"token_type": "batch"})
	if err != nil {
		return nil, err
	}
	issuer := c.AddIssuer(vaultIssuer)
	s.JWT("jwt", issuer)
	s.JWTRole("jwt", vaultRole, map[string]any{"token_policies": policies})
	pod := issuer.Token(map[string]any{
		"sub": podsSubject, "aud": []string{"vault"}, "nbf": issuer.Now().Unix(), "exp": issuer.Now().Add(12 * time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "cart", "uid": "1"}},
	})
	plainPod, oursPod := []string{"-auth", "jwt", "-role", vaultRole}, map[string]any{"method": "jwt", "role": vaultRole}

	read := func(auth map[string]any, path string, more map[string]any) map[string]any {
		secret := map[string]any{"path": path}
		maps.Copy(secret, more)
		return map[string]any{"auth": auth, "secrets": []any{secret}}
	}
	with := func(plain []string, more ...string) []string { return append(slices.Clone(plain), more...) }
	return []vaultWay{
		{name: "AppRole, KV v2", plain: with(plain, vaultSecret), ours: read(ours, "secret/registries/{host}", nil)},
		{name: "AppRole, KV v2, the engine named", plain: with(plain, "-mount", "secret", vaultSecret), ours: read(ours, "secret/registries/{host}", map[string]any{"engine": "kv2"})},
		{name: "AppRole with batch tokens, KV v2", plain: with(plainBatch, vaultSecret), ours: read(oursBatch, "secret/registries/{host}", nil), kept: true},
		{name: "a pod's JWT, KV v2", plain: with(plainPod, vaultSecret), ours: read(oursPod, "secret/registries/{host}", nil), token: pod},
		{name: "AppRole, a dynamic credential", plain: with(plain, "-dynamic", vaultMade), ours: read(ours, vaultMade, map[string]any{"engine": "other"}), kept: true},
	}, nil
}

// commands are the programs that go one way: ours, the plain client, and where it makes a difference the plain client that gives its login back.
func (w vaultWay) commands(b *bench, s *vaultserver.Server, address string) (map[string]func() *exec.Cmd, error) {
	settings := maps.Clone(w.ours)
	settings["address"], settings["caFile"] = address, s.CAFile()
	provider := map[string]any{"name": "vault", "backend": "vault", "matchImages": []string{vaultHost}, "config": settings}
	if w.token != "" {
		provider["tokenAttributes"] = map[string]any{"serviceAccountTokenAudience": "vault"}
	}
	config, err := b.providers(fmt.Sprintf("vault-%s-%s.json", w.name, strings.TrimPrefix(address, "https://127.0.0.1:")), provider)
	if err != nil {
		return nil, err
	}
	id := identity{Token: w.token, Env: []string{"VAULT_ADDR=" + address, "VAULT_CACERT=" + s.CAFile()}}
	command := func(p program.Program, args ...string) func() *exec.Cmd {
		return func() *exec.Cmd {
			cmd, _ := b.command(id, vaultImage, p, args...) // a request that can be written
			return cmd
		}
	}
	all := map[string]func() *exec.Cmd{withVault: command(program.Broker, "--config", config), vaultClient: command(vaultProgram, w.plain...)}
	if !w.kept {
		all[vaultTidy] = command(vaultProgram, append([]string{"-revoke"}, w.plain...)...)
	}
	return all, nil
}

// vault measures the Vault backend beside a client that does nothing but ask, at a real Vault.
func (b *bench) vault(rounds int) (err error) {
	s, err := vaultserver.Start(vaultserver.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	ways, err := b.vaultWays(s)
	if err != nil {
		return err
	}
	b.all = nil
	b.start(empty, emptyProgram)
	b.start(plainVaultStart, vaultProgram, "--version")
	b.start(vaultStart, program.VaultBackend, "--version")
	for _, w := range ways {
		if err := b.roundTrips(s, w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		commands, err := w.commands(b, s, s.Address())
		if err != nil {
			return err
		}
		for _, who := range []string{vaultClient, vaultTidy, withVault} {
			if cmd := commands[who]; cmd != nil {
				b.all = append(b.all, &measured{name: who + w.name, cmd: cmd})
			}
		}
	}
	fmt.Fprintln(b.out)
	if err := b.measure(rounds); err != nil {
		return err
	}
	b.table()
	for _, w := range ways {
		b.compare("vault × a plain client, "+w.name, withVault+w.name, vaultClient+w.name, vaultGoals)
		if !w.kept {
			b.compare("  × "+vaultTidy+w.name, withVault+w.name, vaultTidy+w.name, "")
		}
	}
	return nil
}

// roundTrips prints what Vault is asked on one way by each, which a front of it counts, and makes sure that ours asks no more than who gives the login back too.
func (b *bench) roundTrips(s *vaultserver.Server, w vaultWay) error {
	front := s.Front()
	commands, err := w.commands(b, s, front.Address())
	if err != nil {
		return err
	}
	asked := map[string][]string{}
	fmt.Fprintf(b.out, "Vault's work, %s:\n", w.name)
	for _, who := range []string{vaultClient, vaultTidy, withVault} {
		cmd := commands[who]
		if cmd == nil {
			continue
		}
		front.Forget()
		if out, err := cmd().Output(); err != nil {
			if failed, ok := errors.AsType[*exec.ExitError](err); ok {
				out = failed.Stderr
			}
			return fmt.Errorf("%s: %w: %s", who, err, out)
		}
		for _, r := range front.Requests() {
			asked[who] = append(asked[who], fmt.Sprintf("%s %s %d", r.Method, r.Path, r.Status))
		}
		fmt.Fprintf(b.out, "  %-36s %d: %s\n", strings.TrimSuffix(who, ", "), len(asked[who]), strings.Join(asked[who], ", "))
	}
	most := max(len(asked[vaultClient]), len(asked[vaultTidy]))
	if n := len(asked[withVault]); n > most {
		return fmt.Errorf("the broker's round trips are %d, want at most %d", n, most)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/credential-broker/credential-broker/test/vaultserver"
)

// vaultConfiguration: %[1]s is the demo's directory, %[2]s the registry, %[3]s Vault's address, %[4]s the file of its CA.
const vaultConfiguration = `apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
providers:
- name: vault
  matchImages: ["%[2]s"]
  defaultCacheDuration: 5m
  config:
    address: %[3]s
    caFile: %[4]s
    auth: {method: approle, roleIDFile: %[1]s/role-id, secretIDFile: %[1]s/secret-id}
    secrets:
    - matchImages: ["%[2]s/lent"]    # a user that Vault makes for this, and takes back
      path: rabbitmq/creds/pull
    - path: secret/registries/{host} # a robot account whose password somebody put there
`

// vaultPolicy is all that the node may do in Vault.
const vaultPolicy = `path "secret/data/registries/*" { capabilities = ["read"] }
path "rabbitmq/creds/pull"      { capabilities = ["read"] }`

// vaultPlay is the play with Vault.
type vaultPlay struct {
	*demo
	vault *vaultserver.Server
	lends *vaultserver.RabbitMQ
	// robots is the image that the robot pulls, and lent the one for lent users.
	robots, lent string
}

func runVault(ctx context.Context, root string, s *screen) error {
	if _, err := vaultserver.Executable(); err != nil { // which says how long it takes, where it is not there
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	p := &vaultPlay{demo: &demo{screen: s}}
	err := inTurn(ctx, func(context.Context) error { return p.prepare(root) }, p.registryAndVault, p.whatTheNodeMay, p.oneRequest, p.rotation, p.aUserForThis)
	if p.vault != nil {
		p.vault.Close()
	}
	if err := errors.Join(err, p.close()); err != nil {
		return err
	}
	p.next([][2]string{
		{"docs/backends/vault-harbor-kubeadm.md", "Harbor's robot in Vault, on kubeadm's nodes"},
		{"docs/backends/vault-pods.md", "pods that pull with what Vault lets them read"},
		{"docs/backends/vault-dynamic.md", "tokens of Artifactory and GitLab, made on demand"},
		{"examples/vault", "configurations to copy"},
	})
	return nil
}

// prepare starts the registry and Vault, and sets up in the latter what an administrator would. The server's helpers panic where that fails.
func (p *vaultPlay) prepare(root string) (err error) {
	if err := p.open(root, "vault"); err != nil {
		return err
	}
	p.robots, p.lent = p.image, p.registry.host+"/lent/app"
	if p.vault, err = vaultserver.Start(vaultserver.Options{}); err != nil {
		return err
	}
	defer func() {
		if failed := recover(); failed != nil {
			err = fmt.Errorf("setting Vault up: %v", failed)
		}
	}()
	p.vault.KV2("secret")
	p.putRobot(p.registry.change("robot"))
	p.lends = p.vault.RabbitMQ("rabbitmq")
	p.lends.Role("pull", nil)
	p.lends.Lease(10*time.Minute, time.Hour)
	p.registry.more = p.lends.Users
	p.vault.Policy("image-pull", vaultPolicy)
	roleID, secretID := p.vault.AppRole("approle", "nodes", []string{"image-pull"}, map[string]any{"token_ttl": "20m", "token_max_ttl": "1h"})
	for name, content := range map[string]string{
		"config.yaml": fmt.Sprintf(vaultConfiguration, p.dir, p.registry.host, p.vault.Address(), p.vault.CAFile()), "role-id": roleID, "secret-id": secretID,
	} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (p *vaultPlay) putRobot(password string) {
	p.vault.Put("secret", "registries/"+p.registry.host, map[string]any{"username": "robot", "password": password})
}

// registryAndVault shows where the password is, and where it is not.
func (p *vaultPlay) registryAndVault(ctx context.Context) error {
	fmt.Fprintf(p.out, "%s\n", p.paint(bold, "credential-broker: registry credentials that Vault keeps, and nobody puts on a node"))
	p.say("All of it happens on 127.0.0.1 and in %s, and is gone afterwards.", p.dir)

	p.title("1. A registry that demands a password, and a Vault that has it")
	err := errors.Join(p.registry.push(ctx, p.robots), p.registry.push(ctx, p.lent))
	if err := p.holds(err, "pushed %s and %s", p.robots, p.lent); err != nil {
		return err
	}
	health, err := p.vault.API().Sys().HealthWithContext(ctx)
	if err := p.holds(errors.Join(err, wrong(err != nil || !health.Sealed, "it is sealed")), "a Vault server with TLS at %s, unsealed", p.vault.Address()); err != nil {
		return err
	}
	p.command("vault kv put secret/registries/" + p.registry.host + " username=robot password=********")
	p.command("vault write auth/approle/role/nodes token_policies=image-pull token_ttl=20m token_max_ttl=1h")
	p.shown(vaultPolicy)
	_, _, err = pull(ctx, p.robots, login{})
	return p.holds(errors.Join(refused(err), p.notOnTheNode(p.registry.logins["robot"])), "a pull without credentials is refused, and no file of the node has the password")
}

// notOnTheNode is nil if no file of the node's has the text in it.
func (p *vaultPlay) notOnTheNode(text string) error {
	files, err := filepath.Glob(filepath.Join(p.dir, "*"))
	for _, file := range files {
		if content, err := os.ReadFile(file); err == nil && strings.Contains(string(content), text) {
			return fmt.Errorf("%s has it", file)
		}
	}
	return err
}

// whatTheNodeMay shows a check.
func (p *vaultPlay) whatTheNodeMay(ctx context.Context) error {
	p.title("2. Before any pull: who is the node to Vault, and may it read the secret?")
	p.command("credential-broker get " + p.robots)
	text, err := p.run(ctx, "get", p.robots)
	if err != nil {
		return err
	}
	var notes []string
	for line := range strings.Lines(text) {
		if note, ok := strings.CutPrefix(strings.TrimSpace(line), "note: "); ok {
			notes = append(notes, note)
		}
	}
	p.shown(strings.Join(notes, "\n"))
	return p.holds(wrong(strings.Contains(text, "policies: default, image-pull") && strings.Contains(text, "the login may read the secret"), "%s", text),
		"it is the role's login, with the one policy, and that is enough")
}

// oneRequest shows a pull, and that nothing of it is left in Vault.
func (p *vaultPlay) oneRequest(ctx context.Context) error {
	p.title("3. The kubelet asks once and gets one answer")
	before := p.vault.Tokens()
	answer, err := p.ask(ctx, nil)
	if err != nil {
		return err
	}
	p.shown(p.masked(answer.response))
	if err := p.pullWith(ctx, answer.response); err != nil {
		return err
	}
	left := p.vault.Tokens() - before
	return p.holds(wrong(left == 0, "%d more than before", left), "the login that this took has been given back: Vault has no token of the node's")
}

// rotation shows that a new password is the one that the next request gets.
func (p *vaultPlay) rotation(ctx context.Context) error {
	p.title("4. The robot gets another password, in the registry and in Vault")
	old := login{"robot", p.registry.logins["robot"]}
	password := p.registry.change("robot")
	p.putRobot(password)
	p.command("vault kv put secret/registries/" + p.registry.host + " username=robot password=********")
	_, _, err := pull(ctx, p.robots, old)
	if err := p.holds(refused(err), "the registry refuses the old one"); err != nil {
		return err
	}
	answer, err := p.ask(ctx, nil)
	if err != nil {
		return err
	}
	got := string(answer.response.Auth[p.registry.host].Password)
	if err := p.holds(wrong(got == password, "it is another one"), "the answer has the new one, and nothing on the node was touched"); err != nil {
		return err
	}
	return p.pullWith(ctx, answer.response)
}

// aUserForThis shows a lease: one for all pulls, and revoked in the end.
func (p *vaultPlay) aUserForThis(ctx context.Context) error {
	p.title("5. A user whom Vault makes for the node, and takes back")
	p.say("Vault's engine for RabbitMQ stands in for one of a registry's, such as Artifactory's: the registry lets its users in.")
	p.image = p.lent
	agent, err := p.startAgent(ctx)
	if err != nil {
		return err
	}
	defer agent.end(os.Kill)
	first, err := p.ask(ctx, nil)
	if err != nil {
		return err
	}
	users := slices.Collect(maps.Keys(p.lends.Users()))
	user := first.response.Auth[p.registry.host].Username
	if err := p.holds(wrong(len(users) == 1 && users[0] == user, "the users are %q, and the answer's is %q", users, user), "Vault has made the user %s, for ten minutes", user); err != nil {
		return err
	}
	if err := p.pullWith(ctx, first.response); err != nil {
		return err
	}
	second, err := p.ask(ctx, nil)
	if err != nil {
		return err
	}
	if err := p.holds(errors.Join(sameAuth(second, first), wrong(len(p.lends.Users()) == 1, "there are %d users", len(p.lends.Users()))), "the next pull has the same one: there is still one user, and one lease"); err != nil {
		return err
	}
	p.command(fmt.Sprintf("kill %d # the agent", agent.pid()))
	agent.end(syscall.SIGTERM)
	if err := p.holds(wrong(len(p.lends.Users()) == 0 && len(p.vault.Leases("rabbitmq/creds/pull")) == 0, "there are %d users\n%s", len(p.lends.Users()), agent.log.String()),
		"the agent has revoked the lease before it ended: the user is gone"); err != nil {
		return err
	}
	gone := first.response.Auth[p.registry.host]
	_, _, err = pull(ctx, p.lent, login{gone.Username, string(gone.Password)})
	return p.holds(refused(err), "and the registry refuses what was his")
}

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"

	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	account     = "123456789012"
	host        = account + ".dkr.ecr.eu-west-1.amazonaws.com"
	hosts       = account + ".dkr.ecr.*.amazonaws.com"
	image       = host + "/team/app"
	issuer      = "https://oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE"
	audience    = "sts.amazonaws.com"
	podRole     = "arn:aws:iam::" + account + ":role/pod"
	nodeRole    = "arn:aws:iam::" + account + ":role/node"
	annotation  = "eks.amazonaws.com/ecr-role-arn"
	podsSubject = "system:serviceaccount:shop:cart"
)

// identity is a way in which the programs learn who they are.
type identity struct {
	Name string
	Env  []string
	// Token is the pod's, if that is the identity.
	Token string
	// File is one that the variable FileFrom is to name, if that is the identity.
	File     []byte
	FileFrom string
}

// offer is what the cloud's process says first.
type offer struct{ Identities, Google, Azure []identity }

// work is what the cloud was asked since it was last asked what it was asked.
type work map[string]int

// serveCloud is the cloud's process: it makes its offer, and answers each line on standard input with the work done since, until there is no more input.
func serveCloud() error {
	c, err := cloud.Start(cloud.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	policy := []cloud.Statement{{Actions: []string{"ecr:*"}, Resources: []string{"*"}}}
	keys := c.AddUser("arn:aws:iam::"+account+":user/node", policy...)
	c.AddRegistry(host, cloud.Repository{Name: "team/app"})
	c.AddRole(cloud.Role{ARN: nodeRole, Policy: policy})
	pods := c.AddIssuer(issuer)
	c.AddOIDCProvider(account, issuer, audience)
	c.AddRole(cloud.Role{ARN: podRole, Policy: policy, Trust: []cloud.Trust{{Federated: issuer, Audience: audience, Subject: podsSubject}}})
	token := pods.Token(map[string]any{
		"sub": podsSubject, "aud": []string{audience}, "kubernetes.io": map[string]any{"namespace": "shop", "serviceaccount": map[string]any{"name": "cart"}},
	})
	azure, err := azureIdentities(c)
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(offer{
		Identities: []identity{
			{Name: "keys", Env: append(c.Environ(), keys.Environ()...)},
			{Name: "instance metadata", Env: append(c.Environ(), c.Instance(nodeRole).Environ()...)},
			{Name: "pod", Env: c.Environ(), Token: token},
		},
		Google: []identity{
			{Name: "the metadata server", Env: append(c.Environ(), c.GoogleInstance(cloud.ServiceAccount{Email: garNode}).Environ()...)},
			{Name: "a user's login", Env: c.Environ(), File: c.AddGoogleUser(garHuman), FileFrom: adc},
			{Name: "a key file", Env: c.Environ(), File: c.ServiceAccountKeyFile(garNode), FileFrom: adc},
		},
		Azure: azure,
	}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		done, connections := work{}, map[int]bool{}
		for _, r := range c.Requests() {
			done[fmt.Sprintf("%s %s %d", r.Service, r.Operation, r.Status)]++
			if r.Connection != 0 {
				connections[r.Connection] = true
			}
		}
		done["TLS connections"] = len(connections)
		c.ForgetRequests()
		if err := out.Encode(done); err != nil {
			return err
		}
	}
	return nil
}

// adc names the file of Google's credentials.
const adc = "GOOGLE_APPLICATION_CREDENTIALS"

// remote is a cloud in a process of its own, so that its work is nobody's time but the machine's.
type remote struct {
	offer
	in  io.WriteCloser
	out *json.Decoder
	cmd *exec.Cmd
}

func startCloud() (*remote, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r := &remote{cmd: exec.Command(self, "-serve")}
	r.cmd.Stderr = os.Stderr
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	r.out = json.NewDecoder(out)
	if err := r.out.Decode(&r.offer); err != nil {
		return nil, errors.Join(fmt.Errorf("start the cloud: %w", err), r.close())
	}
	return r, nil
}

func (r *remote) close() error {
	_ = r.in.Close()
	return r.cmd.Wait()
}

// work is what it was asked since this was last called.
func (r *remote) work() (work, error) {
	if _, err := io.WriteString(r.in, "\n"); err != nil {
		return nil, err
	}
	var done work
	err := r.out.Decode(&done)
	return done, err
}

func (w work) equal(other work) bool { return maps.Equal(w, other) }

package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// What is pulled from Azure.
const (
	acrHost  = "contoso.azurecr.io"
	acrImage = acrHost + "/team/app"
)

// The names under which results are compared, with an identity at their end.
const (
	withACR     = "credential-broker, backend acr, "
	plainClient = "a plain client of Azure's SDK, "
	acrStart    = "the Azure backend's start alone"
	plainStart  = "a plain client's start alone"
)

var acrGoals = goals{goal: 1.9}

// azureProgram is Azure's SDK without anything around it: the official provider cannot be built here.
var azureProgram = program.Own("azure-direct", "./cost/azure-direct")

// azureIdentities are a machine's and an application's, who may pull.
func azureIdentities(c *cloud.Cloud) ([]identity, error) {
	tenant := c.AddEntraTenant(cloud.EntraTenant{}).ID
	c.AddAzureRegistry(cloud.AzureRegistry{Host: acrHost, Tenant: tenant, Repositories: []string{"team/app"}})
	certificate, file, err := clientCertificate()
	if err != nil {
		return nil, err
	}
	const secret = "Q8~not-a-real-secret-of-the-application"
	machine := c.AzureInstanceIn(tenant, cloud.ManagedIdentity{System: true})
	application := c.AddServicePrincipal(tenant, cloud.ServicePrincipal{Secrets: []string{secret}, Certificates: []*x509.Certificate{certificate}})
	c.GrantAcrPull(acrHost, machine.Identities()[0].ObjectID)
	c.GrantAcrPull(acrHost, application.ObjectID)
	as := func(more ...string) []string {
		return append(c.Environ(), append(more, "AZURE_TENANT_ID="+tenant, "AZURE_CLIENT_ID="+application.ClientID)...)
	}
	return []identity{
		{Name: "a managed identity", Env: append(c.Environ(), machine.Environ()...)},
		{Name: "an application's secret", Env: as("AZURE_CLIENT_SECRET=" + secret)},
		{Name: "an application's certificate", Env: as(), File: file, FileFrom: "AZURE_CLIENT_CERTIFICATE_PATH"},
	}, nil
}

// clientCertificate makes an application's certificate, and the file that proves it.
func clientCertificate() (*x509.Certificate, []byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	made, err := x509.ParseCertificate(der)
	return made, append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...), err
}

// azure measures the backend for Azure's registries beside a client that does nothing but ask.
func (b *bench) azure(rounds int) error {
	b.all = nil
	b.start(empty, emptyProgram)
	b.start(plainStart, azureProgram, "--version")
	b.start(acrStart, program.ACRBackend, "--version")
	config, err := b.providers("azure.json", map[string]any{"name": "acr", "backend": "acr", "matchImages": []string{acrHost}, "inheritEnv": []string{"AZURE_*"}})
	if err != nil {
		return err
	}
	for _, id := range b.cloud.Azure {
		id, err := b.withFile(id)
		if err != nil {
			return err
		}
		ask := func(name string, p program.Program, args ...string) {
			b.all = append(b.all, &measured{name: name + id.Name, cmd: func() *exec.Cmd {
				cmd, _ := b.command(id, acrImage, p, args...) // a request that can be written
				return cmd
			}})
		}
		ask(plainClient, azureProgram)
		ask(withACR, program.Broker, "--config", config)
	}
	if err := b.measure(rounds); err != nil {
		return err
	}
	byName := b.byName()
	for _, id := range b.cloud.Azure {
		theirs, ours := byName[plainClient+id.Name].work, byName[withACR+id.Name].work
		fmt.Fprintf(b.out, "the cloud's work, %s:\n  the plain client %v\n  the broker       %v\n", id.Name, theirs, ours)
		for what, n := range ours {
			if n > theirs[what] {
				return fmt.Errorf("%s: the broker's round trips are more than the plain client's: %d × %s, want at most %d", id.Name, n, what, theirs[what])
			}
		}
	}
	fmt.Fprintln(b.out)
	b.table()
	for _, id := range b.cloud.Azure {
		b.compare("acr × a plain client, "+id.Name, withACR+id.Name, plainClient+id.Name, acrGoals)
	}
	return nil
}

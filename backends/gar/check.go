package gar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/gar/internal/ask"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/proto/trust"
)

// Check finds out who asks, whether that identity gets a token, and, for an image, whether it may download from the image's repository and whether that is one of images. The error names the command
// that helps. It changes nothing; what is merely worth knowing is logged.
func (b *Backend) Check(ctx context.Context, req backends.Request) error {
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	reg, ok := parseHost(req.Image, b.cfg.Hosts, b.cfg.UniverseDomain)
	switch {
	case req.Image == "" && b.cfg.PodIdentity == settings.PodIdentityRequire && req.Token == "":
		slog.InfoContext(ctx, "only a request with a pod's token can be checked: podIdentity is Require")
		return nil
	case req.Image == "":
		reg = registry{universe: b.google.universe()}
	case !ok:
		return backends.Refused(fmt.Errorf("%q is no registry of Google's that is known here: it can be named in hosts, if it is one", remote.Cut(req.Image.Host())))
	}
	t, err := b.token(ctx, req, reg)
	if err != nil {
		return err
	}
	who, err := b.who(req, reg)
	if err != nil {
		return err
	}
	c := checking{Backend: b, who: who, member: b.google.member(ctx, who), reg: reg}
	slog.InfoContext(ctx, "asking Google as", "identity", c.member.String())
	if req.Image == "" {
		return nil
	}
	if c.place, ok = placeOf(reg); !ok {
		slog.InfoContext(ctx, "there is a token; more cannot be checked, since the image's name does not say which repository of Artifact Registry it is in", "host", reg.host)
		return nil
	}
	if c.project == "" || c.repository == "" {
		return backends.Refused(fmt.Errorf("%q is no image's name: want %s/PROJECT/REPOSITORY/IMAGE", remote.Cut(string(req.Image)), reg.host))
	}
	answer, err := b.ask(ctx, ask.Question{
		Token: string(t.value), Proxy: string(b.cfg.Proxy), Endpoint: "https://" + c.api,
		Project: c.project, Location: c.location, Repository: c.repository, Redirection: reg.container,
	})
	if err != nil {
		return err
	}
	return c.judge(ctx, answer)
}

// place is where an image is, in Artifact Registry's words.
type place struct {
	project, location, repository string
	api                           string // the host of the API that knows it
}

// gcrLocations are the locations of the repositories, named as the host, that serve the hosts of Container Registry (https://cloud.google.com/artifact-registry/docs/transition/gcr-repositories).
var gcrLocations = map[string]string{"gcr.io": "us", "us.gcr.io": "us", "eu.gcr.io": "europe", "asia.gcr.io": "asia"}

// placeOf is where the images of a registry are; false: its name does not say.
func placeOf(reg registry) (place, bool) {
	p := place{project: reg.project, location: reg.location, repository: reg.repository, api: "artifactregistry." + reg.universe}
	name := strings.TrimSuffix(strings.ToLower(reg.host), ":443")
	first, rest, _ := strings.Cut(name, ".")
	switch {
	case reg.container:
		p.location, p.repository = gcrLocations[name], name
	case first == "docker" && p.location != "": // whoever pulls from a region's own endpoint has a reason to ask there, too
		p.api = "artifactregistry." + p.location + ".rep." + reg.universe
	case p.location == "" && first == "docker":
		p.location, _, _ = strings.Cut(rest, ".")
	case p.location == "": // another universe's, which names its hosts alike
		p.location, _ = strings.CutSuffix(first, "-docker")
		if p.location == first {
			p.location = ""
		}
	}
	return p, p.location != ""
}

// checking is one check.
type checking struct {
	*Backend
	who    who
	member member
	reg    registry
	place
}

// String names the repository in messages.
func (c *checking) String() string {
	return fmt.Sprintf("repository %s in location %s of project %s", remote.Cut(c.repository), c.location, remote.Cut(c.project))
}

// command is one of gcloud's on the repository.
func (c *checking) command(verb, more string) string {
	return fmt.Sprintf("`gcloud artifacts repositories %s %s --project=%s --location=%s%s`", verb, trust.Quote(c.repository), trust.Quote(c.project), trust.Quote(c.location), more)
}

// binding is the command that lets the identity pull.
func (c *checking) binding() string {
	command := c.command("add-iam-policy-binding", " --member="+c.member.shell()+" --role=roles/artifactregistry.reader")
	if c.member.note != "" {
		command += ", where " + c.member.note
	}
	return command
}

const reasonScope = "PERMISSION_DENIED ACCESS_TOKEN_SCOPE_INSUFFICIENT"

// judge makes of what the API said what an operator wants to know: the first problem that stands in the way, and what to do about it.
func (c *checking) judge(ctx context.Context, a ask.Answer) error {
	if no := a.Permission.Failure; no != nil && no.Code == reasonScope {
		return c.scopeMissing(ctx, no)
	} else if no != nil {
		return c.failed(ctx, "ask whether the image may be pulled", no)
	}
	if err := c.judgeRedirection(ctx, a.Redirection); err != nil {
		return err
	}
	r := a.Repository
	switch no := r.Failure; {
	case no == nil:
	case no.Status == http.StatusNotFound:
		return backends.Refused(fmt.Errorf("there is no %s: make it with %s, or see with `gcloud artifacts repositories list --project=%s` where it is: its location is the first part of the host",
			c, c.command("create", " --repository-format=docker"), trust.Quote(c.project)))
	case no.Status != http.StatusForbidden:
		return c.failed(ctx, "look at the "+c.String(), no)
	case !a.Permission.Held:
		return backends.Refused(fmt.Errorf("%s may not pull from the %s, or there is none: %s", c.member.name, c, c.binding()))
	default:
		slog.WarnContext(ctx, "the identity may pull, and not look at the repository: its format is not known", "missing", "artifactregistry.repositories.get, which is in roles/artifactregistry.reader")
		return nil
	}
	slog.InfoContext(ctx, "the repository is there", "repository", c.repository, "project", c.project, "location", c.location, "format", r.Format, "mode", modeOf(r.Mode))
	switch {
	case r.Format != "DOCKER":
		return backends.Refused(fmt.Errorf("the %s has format %s and no container images: name a repository of format DOCKER", c, remote.Cut(r.Format)))
	case !a.Permission.Held:
		return backends.Refused(fmt.Errorf("%s may not pull from the %s: %s", c.member.name, c, c.binding()))
	}
	return nil
}

// modeOf is a mode as gcloud names it.
func modeOf(mode string) string {
	return strings.ToLower(strings.TrimSuffix(mode, "_REPOSITORY"))
}

// judgeRedirection says whether a gcr.io host is served by Artifact Registry: nobody else serves it any more.
func (c *checking) judgeRedirection(ctx context.Context, r ask.Redirection) error {
	switch {
	case !c.reg.container:
	case r.Failure != nil && r.Failure.Status == http.StatusForbidden:
		slog.WarnContext(ctx, "it cannot be seen whether Artifact Registry serves the gcr.io hosts of the project", "project", c.project, "missing", "artifactregistry.projectsettings.get, which is in roles/artifactregistry.reader for a project")
	case r.Failure != nil:
		return c.failed(ctx, "see whether Artifact Registry serves "+c.reg.host+" for project "+remote.Cut(c.project), r.Failure)
	case r.State == "REDIRECTION_FROM_GCR_IO_DISABLED":
		return backends.Refused(fmt.Errorf("Artifact Registry does not serve %s for project %s (%s), and Container Registry is no more: `gcloud artifacts settings enable-upgrade-redirection --project=%s`", //nolint:staticcheck // ST1005: names
			c.reg.host, remote.Cut(c.project), r.State, trust.Quote(c.project)))
	default:
		slog.InfoContext(ctx, "the host of Container Registry is served by a repository of Artifact Registry", "host", c.reg.host, "project", c.project, "redirection", r.State, "repository", c.repository, "location", c.location)
	}
	return nil
}

// scopeMissing: the token itself reaches no API, whatever the identity may do. A machine's may still be good for pulls.
func (c *checking) scopeMissing(ctx context.Context, no *ask.Failure) error {
	from, err := c.google.source(ctx, c.who)
	if m, ok := from.(*metadataServer); err == nil && ok && c.who.account.email == "" {
		may, scopes := m.mayPullOnly(ctx)
		if may {
			slog.WarnContext(ctx, "the machine's OAuth scopes let it pull, and not ask the API: whether its role suffices can only be seen with the scope cloud-platform.read-only", "scopes", scopes)
			return nil
		}
		return c.failedWith(ctx, "ask whether the image may be pulled", no, fmt.Sprintf("not a role is missing but an OAuth scope: the machine has %s; give it one of cloud-platform, cloud-platform.read-only and devstorage.read_only"+
			" (`gcloud compute instances set-service-account INSTANCE --scopes=cloud-platform` while it is stopped; on GKE, a node pool with --scopes)", scopes))
	}
	return c.failedWith(ctx, "ask whether the image may be pulled", no, "not a role is missing but an OAuth scope: make the credentials with the scope "+scopeAll)
}

// failed makes the error of a call that failed.
func (c *checking) failed(ctx context.Context, doing string, no *ask.Failure) error {
	switch {
	case strings.HasSuffix(no.Code, " SERVICE_DISABLED"):
		project, _ := strings.CutPrefix(no.Consumer, "projects/")
		if project == "" {
			project = c.project
		}
		return c.failedWith(ctx, doing, no, fmt.Sprintf("the Artifact Registry API is not enabled in project %s: `gcloud services enable artifactregistry.googleapis.com --project=%s`", project, trust.Quote(project)))
	case strings.HasSuffix(no.Code, " SECURITY_POLICY_VIOLATED"):
		return c.failedWith(ctx, doing, no, "a perimeter of VPC Service Controls refuses it, and pulls from here, too: add this network, or the identity, to an ingress rule")
	case no.Status == http.StatusUnauthorized:
		return c.failedWith(ctx, doing, no, "Google gave the token, and its API does not take it: it is revoked, or somebody else answers in Google's place")
	}
	return c.failedWith(ctx, doing, no, "")
}

func (c *checking) failedWith(ctx context.Context, doing string, no *ask.Failure, remedy string) error {
	last := exchange{host: c.api, status: no.Status, code: no.Code, date: no.Date}
	switch {
	case no.Untrusted:
		last.err = &tls.CertificateVerificationError{Err: errors.New(no.Text)}
	case no.Text != "":
		last.err = errors.New(no.Text)
	}
	calls := c.google.calls()
	calls.last = last
	return calls.explain(ctx, nil, doing, func(exchange) string { return remedy })
}

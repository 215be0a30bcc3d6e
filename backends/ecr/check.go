package ecr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"
	"github.com/aws/aws-sdk-go-v2/service/ecr/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/amazon"
	"github.com/credential-broker/credential-broker/backends/internal/remote"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
)

// Check finds out who asks (GetCallerIdentity), whether that identity gets a token, and, for a private image, whether it may pull it. The error names the policy statement that is missing. It changes
// nothing: what only a pull can show, such as the import of a pull-through cache, is logged as what the policy needs.
func (b *Backend) Check(ctx context.Context, req backends.Request) error {
	ctx, cancel := remote.WithinBudget(ctx)
	defer cancel()
	reg, ok := parseHost(req.Image, b.cfg.RegistrySuffixes)
	switch {
	case req.Image == "":
		return b.checkWithoutImage(ctx, req)
	case !ok:
		return backends.Refused(fmt.Errorf("%q is no registry of Amazon's that is known here: its domain can be named in registrySuffixes, if it is one", remote.Cut(req.Image.Host())))
	case reg.public && b.cfg.Public == PublicAnonymous:
		return nil
	}
	who, err := b.who(req, reg)
	if err == nil {
		err = b.check(ctx, who, req.Image, reg)
	}
	if err != nil && reg.public && b.cfg.Public == PublicAnonymousFallback && anonymousWillDo(err) {
		slog.WarnContext(ctx, "no token for ECR Public: images are pulled anonymously, at the lower rate limit", "reason", err.Error())
		return nil
	}
	return err
}

// checkWithoutImage finds out who the node is, in the region that the configuration names. Whose identity a pod's token is, only a request with one can show; and of the roles
// for certain accounts, the first stands for all.
func (b *Backend) checkWithoutImage(ctx context.Context, req backends.Request) error {
	if b.cfg.PodIdentity == settings.PodIdentityRequire && req.Token == "" {
		slog.InfoContext(ctx, "only a request with a pod's token can be checked: podIdentity is Require")
		return nil
	}
	reg := registry{region: unknownRegion}
	if len(b.cfg.Via) == 0 && b.cfg.RoleARN == "" && !b.cfg.WebIdentity.IsZero() {
		reg.account = b.cfg.Roles[0].Accounts[0] // validated: there is one
	}
	who, err := b.who(req, reg)
	if err != nil {
		return err
	}
	return b.check(ctx, who, "", reg)
}

func (b *Backend) check(ctx context.Context, who who, image backends.Image, reg registry) error {
	s, err := b.sessions.open(ctx, reg)
	if err != nil {
		return err
	}
	provider, err := s.provider(ctx, who)
	if err != nil {
		return err
	}
	ctx, call := s.Call(ctx, "sts", s.Config.Region)
	me, err := s.STS.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}, func(o *sts.Options) { o.Credentials, o.Retryer = provider, call })
	if err != nil {
		return call.Explain(err, "ask who this is", func(amazon.Cause, error) string { return "" })
	}
	arn := aws.ToString(me.Arn)
	slog.InfoContext(ctx, "asking AWS as", "arn", arn)
	if image == "" {
		return nil
	}
	if _, err := s.authorizationToken(ctx, provider, reg); err != nil {
		if e, ok := errors.AsType[*amazon.CallError](err); ok && e.Cause == amazon.CauseDenied {
			needed := []string{"ecr:GetAuthorizationToken"}
			if reg.public {
				needed = []string{"ecr-public:GetAuthorizationToken", "sts:GetServiceBearerToken"}
			}
			return e.Cause.Kind()(&amazon.CallError{Cause: e.Cause, Text: fmt.Sprintf("%s: the policy of %s lacks %s", e.Text, arn, amazon.Statement("*", needed...))})
		}
		return err
	}
	if reg.public {
		return nil
	}
	return s.checkRepository(ctx, provider, reg, arn, image.Path())
}

// noSuchLayer is a digest that no layer has.
const noSuchLayer = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// checkRepository asks for an image and a layer that are not there: whoever may not pull is told so, and others that there are none.
func (s *session) checkRepository(ctx context.Context, as aws.CredentialsProvider, reg registry, me, repository string) error {
	const doing = "see whether the image may be pulled"
	partition := "aws"
	if parts := strings.SplitN(me, ":", 3); len(parts) == 3 {
		partition = parts[1]
	}
	resource := fmt.Sprintf("arn:%s:ecr:%s:%s:repository/%s", partition, reg.region, reg.account, repository)
	var missing []string
	ask := func(action string, ask func(context.Context, *ecr.Client) error) error {
		ctx, call := s.Call(ctx, "ecr", reg.region)
		api, err := s.api(as, reg, call)
		if err != nil {
			return err
		}
		err = ask(ctx, api)
		var gone *types.RepositoryNotFoundException
		switch {
		case err == nil, isNotThere(err):
			return nil
		case errors.As(err, &gone):
			return err
		case amazon.CauseOf(err) == amazon.CauseDenied:
			missing = append(missing, action)
			return nil
		}
		return call.Explain(err, doing, func(amazon.Cause, error) string { return "" })
	}
	err := ask("ecr:BatchGetImage", func(ctx context.Context, api *ecr.Client) error {
		out, err := api.BatchGetImage(ctx, &ecr.BatchGetImageInput{RegistryId: &reg.account, RepositoryName: &repository, ImageIds: []types.ImageIdentifier{{ImageDigest: aws.String(noSuchLayer)}}})
		if err != nil {
			return err
		}
		for _, f := range out.Failures {
			if f.FailureCode != types.ImageFailureCodeImageNotFound {
				return &smithy.GenericAPIError{Code: string(f.FailureCode)}
			}
		}
		return nil
	})
	if err == nil {
		err = ask("ecr:GetDownloadUrlForLayer", func(ctx context.Context, api *ecr.Client) error {
			_, err := api.GetDownloadUrlForLayer(ctx, &ecr.GetDownloadUrlForLayerInput{RegistryId: &reg.account, RepositoryName: &repository, LayerDigest: aws.String(noSuchLayer)})
			return err
		})
	}
	var gone *types.RepositoryNotFoundException
	absent := errors.As(err, &gone)
	if err != nil && !absent {
		return err
	}
	rule, known := s.pullThroughRule(ctx, as, reg, repository)
	cached := amazon.Statement(resource, "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchImportUpstreamImage", "ecr:CreateRepository")
	switch {
	case len(missing) > 0:
		return backends.Refused(fmt.Errorf("%s: %s may not: its policy, and the repository's if that is in another account, must allow %s", doing, me, amazon.Statement(resource, missing...)))
	case absent && rule != "":
		slog.InfoContext(ctx, "the repository will be made by the first pull through the cache, if the policy allows it", "rule", rule, "needed", cached)
		return nil
	case absent && !known:
		return backends.Refused(fmt.Errorf("%s: there is no repository %s: if it is to come from a pull-through cache, the policy must allow %s", doing, remote.Cut(repository), cached))
	case absent:
		return backends.Refused(fmt.Errorf("%s: there is no repository %s in %s, and no pull-through cache rule for it", doing, remote.Cut(repository), reg))
	case rule != "":
		slog.InfoContext(ctx, "the repository belongs to a pull-through cache; new images need more than pulling", "rule", rule, "needed", cached)
	}
	return nil
}

// isNotThere reports answers that only those get who may ask.
func isNotThere(err error) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	return ok && (api.ErrorCode() == "LayersNotFoundException" || api.ErrorCode() == "ImageNotFoundException" || api.ErrorCode() == "LayerInaccessibleException")
}

// pullThroughRule is the prefix of the cache rule that the repository falls under; known: the rules could be read.
func (s *session) pullThroughRule(ctx context.Context, as aws.CredentialsProvider, reg registry, repository string) (prefix string, known bool) {
	ctx, call := s.Call(ctx, "ecr", reg.region)
	api, err := s.api(as, reg, call)
	if err != nil {
		return "", false
	}
	rules := ecr.NewDescribePullThroughCacheRulesPaginator(api, &ecr.DescribePullThroughCacheRulesInput{RegistryId: &reg.account})
	for rules.HasMorePages() {
		page, err := rules.NextPage(ctx)
		if err != nil {
			return "", false
		}
		for _, rule := range page.PullThroughCacheRules {
			if p := aws.ToString(rule.EcrRepositoryPrefix); p == "ROOT" || p != "" && strings.HasPrefix(repository, p+"/") {
				return p, true
			}
		}
	}
	return "", true
}

package conformance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func answerRules() []Rule {
	return []Rule{
		{Name: "credentials", Demand: "For an image that it serves, the backend gives credentials.", judge: judgeCredentials},
		{Name: "keys", Demand: "Every auth key parses, and matches the requested image by the kubelet's rules.", judge: judgeKeys},
		{Name: "expiry", Demand: "An expiry lies in the future, and neither it nor a cache duration is ten years away.", judge: judgeExpiry},
		{Name: "scope", Demand: "An answer for a whole registry has no key with a path there, and another image of that registry gets the same one.", judge: judgeScope},
		{Name: "size", Demand: "An answer has at most 1,000 credentials, a lease of 16 KiB, 100 spans, and 1 MiB in all.", judge: judgeSize},
		{Name: "other-image", Demand: "For an image that it does not serve, the backend answers with no credentials or with an error, and never with a key that does not match the image.", judge: otherImage},
		{Name: "odd-requests", Demand: "Requests that no kubelet would send, and fields of later versions, are answered, and the next request as well.", judge: oddRequests},
		{Name: "errors", Demand: "Every error has a message: one line, of at most 4 KiB and a little.", judge: judgeErrors},
		{Name: "check", Demand: "Check, where there is something to check, answers in time, with and without an image.", judge: judgeCheck},
	}
}

// answer is what the backend says for an image when nothing else goes on.
type answer struct {
	response *backendv1.GetCredentialsResponse
	// The user names and passwords are the same each time, and not made for whoever asks.
	sameUsers, samePasswords bool
}

// answerFor asks for an image twice, once for the whole suite: each time a backend that has just been started, since one that lives may keep what it got, and what another gets may be new.
func (t *trial) answerFor(ctx context.Context, image string) (*answer, error) {
	if a, ok := t.answers[image]; ok {
		return a, nil
	}
	var responses [2]*backendv1.GetCredentialsResponse
	for i := range responses {
		p, err := t.configured(ctx)
		if err != nil {
			return nil, err
		}
		if responses[i], err = p.get(ctx, image); err != nil {
			return nil, p.broken("asked for credentials", err)
		}
	}
	a := &answer{response: responses[0]}
	a.sameUsers = slices.Equal(usersOf(responses[0]), usersOf(responses[1]))
	a.samePasswords = slices.Equal(passwordsOf(responses[0]), passwordsOf(responses[1]))
	t.answers[image] = a
	return a, nil
}

// served is the answer for the image that the backend serves.
func (t *trial) served(ctx context.Context) (*answer, error) {
	if t.options.Image == "" {
		return nil, notRun("no Image was given that the backend has credentials for")
	}
	a, err := t.answerFor(ctx, t.options.Image)
	if err == nil {
		const mend = "give the suite an Image that the backend has credentials for with this Config, or find out why it has none"
		switch {
		case a.response.GetError() != nil:
			err = fail(mend, "for %s it answers %s", t.options.Image, describe(a.response.GetError()))
		case len(a.response.GetCredentials()) == 0:
			err = fail(mend, "for %s it has no credentials, and no error", t.options.Image)
		}
	}
	return a, t.unless("credentials", err)
}

// differs says how a response differs from the answer; empty if it does not.
func (a *answer) differs(r *backendv1.GetCredentialsResponse) string {
	switch {
	case (a.response.GetError() == nil) != (r.GetError() == nil):
		if r.GetError() != nil {
			return "an error instead of an answer: " + describe(r.GetError())
		}
		return "an answer instead of an error"
	case r.GetError() != nil:
		return ""
	case !slices.Equal(keysOf(a.response), keysOf(r)):
		return fmt.Sprintf("credentials for %s instead of %s", shorten(fmt.Sprintf("%q", keysOf(r))), shorten(fmt.Sprintf("%q", keysOf(a.response))))
	case a.sameUsers && !slices.Equal(usersOf(a.response), usersOf(r)):
		return "another user name"
	case a.samePasswords && !slices.Equal(passwordsOf(a.response), passwordsOf(r)):
		return "another password"
	}
	return ""
}

func fieldsOf(r *backendv1.GetCredentialsResponse, field func(*backendv1.Credential) string) []string {
	values := make([]string, 0, len(r.GetCredentials()))
	for _, c := range r.GetCredentials() {
		values = append(values, c.GetKey()+"\x00"+field(c)) // by key, for the order may vary
	}
	slices.Sort(values)
	return values
}

func keysOf(r *backendv1.GetCredentialsResponse) []string {
	keys := fieldsOf(r, func(*backendv1.Credential) string { return "" })
	for i := range keys {
		keys[i] = strings.TrimSuffix(keys[i], "\x00")
	}
	return keys
}

func usersOf(r *backendv1.GetCredentialsResponse) []string {
	return fieldsOf(r, (*backendv1.Credential).GetUsername)
}

func passwordsOf(r *backendv1.GetCredentialsResponse) []string {
	return fieldsOf(r, (*backendv1.Credential).GetPassword)
}

func judgeCredentials(ctx context.Context, t *trial) error {
	a, err := t.served(ctx)
	if err != nil {
		return err
	}
	for i, c := range a.response.GetCredentials() {
		if c.GetUsername() == "" {
			t.note("credentials[%d] (key %q) has no user name: most registries want one", i, shorten(c.GetKey()))
		}
		if c.GetPassword() == "" {
			t.note("credentials[%d] (key %q) has no password", i, shorten(c.GetKey()))
		}
	}
	return nil
}

func judgeKeys(ctx context.Context, t *trial) error {
	a, err := t.served(ctx)
	if err != nil {
		return err
	}
	return checkKeys(a.response, t.options.Image)
}

func checkKeys(r *backendv1.GetCredentialsResponse, image string) error {
	const mend = "give host[:port], or host[:port]/path for some of its images, with the port if the image names one; in Go: req.Image.Host()"
	for i, c := range r.GetCredentials() {
		switch authKey := c.GetKey(); {
		case authKey == "":
			return fail(mend, "the key of credentials[%d] is empty", i)
		case len(authKey) > 1<<10:
			return fail(mend, "the key of credentials[%d] has %d bytes: at most 1,024 are taken", i, len(authKey))
		case !utf8.ValidString(authKey) || strings.ContainsFunc(authKey, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }):
			return fail(mend, "the key of credentials[%d], %q, has control characters or spaces", i, shorten(authKey))
		case !keyMatches(authKey, image):
			if _, err := parseKey(authKey); err != nil {
				return fail(mend, "the key of credentials[%d], %q, is not of the form host[:port][/path]: %v", i, shorten(authKey), err)
			}
			return fail(mend, "the key of credentials[%d], %q, does not match %s, so the broker drops it", i, shorten(authKey), image)
		case strings.ContainsRune(c.GetUsername()+c.GetPassword(), 0):
			return fail("leave zero bytes out: the broker refuses them", "the user name or password of credentials[%d] has a zero byte", i)
		}
	}
	return nil
}

func judgeExpiry(ctx context.Context, t *trial) error {
	a, err := t.served(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	if err := checkExpiry(a.response, now); err != nil {
		return err
	}
	for i, c := range a.response.GetCredentials() {
		if left := c.GetExpires().AsTime().Sub(now); c.GetExpires() != nil && left < time.Minute {
			t.note("credentials[%d] expires in %s: a pull may take longer", i, left.Round(time.Second))
		}
	}
	return nil
}

func checkExpiry(r *backendv1.GetCredentialsResponse, now time.Time) error {
	const mend = "give the moment at which the credential stops working as seconds since 1970 in UTC, or leave it out where it is not known"
	const far = 10 * 365 * 24 * time.Hour
	for i, c := range r.GetCredentials() {
		if c.GetExpires() == nil {
			continue
		}
		expires := c.GetExpires().AsTime()
		switch left := expires.Sub(now); {
		case left > far:
			return fail(mend, "credentials[%d] expires at %s: is that in milliseconds?", i, expires.Format(time.RFC3339))
		case left <= 0:
			return fail(mend, "credentials[%d] expired at %s", i, expires.Format(time.RFC3339))
		case c.GetExpires().CheckValid() != nil:
			return fail(mend, "the expiry of credentials[%d] is no time: %d seconds, %d nanoseconds", i, c.GetExpires().GetSeconds(), c.GetExpires().GetNanos())
		}
	}
	if d := r.GetCacheDuration(); d != nil {
		switch {
		case d.CheckValid() != nil || d.AsDuration() < 0:
			return fail("give a duration of zero or more, or none", "cache_duration is %d seconds, %d nanoseconds", d.GetSeconds(), d.GetNanos())
		case d.AsDuration() > far:
			return fail("give seconds", "cache_duration is %s: is that in another unit?", d.AsDuration())
		}
	}
	return nil
}

func judgeScope(ctx context.Context, t *trial) error {
	a, err := t.served(ctx)
	if err != nil {
		return err
	}
	if a.response.GetScope() != backendv1.Scope_SCOPE_REGISTRY {
		return nil // each image may have its own
	}
	const mend = "say SCOPE_IMAGE (backends.ScopeImage), or give every image of the registry (host and port) the same credentials, with no path in their keys"
	for i, c := range a.response.GetCredentials() {
		if hasPathFor(c.GetKey(), t.options.Image) {
			return fail(mend, "it answers for the whole registry, but the key of credentials[%d], %q, holds for some of its images only", i, shorten(c.GetKey()))
		}
	}
	host, _, _ := strings.Cut(t.options.Image, "/")
	another := host + "/conformance/another"
	b, err := t.answerFor(ctx, another)
	if err != nil {
		return err
	}
	if how := a.differs(b.response); how != "" {
		return fail(mend, "it answers %s for the whole registry, and gives %s %s", t.options.Image, another, how)
	}
	if b.response.GetScope() != backendv1.Scope_SCOPE_REGISTRY {
		return fail(mend, "it answers %s for the whole registry, and %s for that image only", t.options.Image, another)
	}
	return nil
}

func judgeSize(ctx context.Context, t *trial) error {
	a, err := t.served(ctx)
	if err != nil {
		return err
	}
	return checkSize(a.response)
}

func checkSize(r *backendv1.GetCredentialsResponse) error {
	const mend = "give the credentials for the requested image, not all there are: the broker refuses the whole answer"
	if n := len(r.GetCredentials()); n > backendv1.MaxCredentials {
		return fail(mend, "the answer has %d credentials", n)
	}
	if n := len(r.GetLease()); n > backendv1.MaxLeaseBytes {
		return fail("put into the lease what Renew and Revoke need to find the rest: the broker refuses the whole answer", "the lease has %d bytes", n)
	}
	if n := len(r.GetSpans()); n > backendv1.MaxSpans {
		return fail("tell of the steps that take their time: the broker drops the others", "the answer has %d spans", n)
	}
	if n := proto.Size(r); n > backendv1.MaxMessageBytes {
		return fail(mend, "the answer has %d bytes", n)
	}
	return nil
}

func otherImage(ctx context.Context, t *trial) error {
	if t.options.Image != "" && keyMatchesAny(t.answers[t.options.Image], t.options.OtherImage) {
		return fail("give the suite an OtherImage that the backend has no credentials for", "its credentials for %s match %s too", t.options.Image, t.options.OtherImage)
	}
	a, err := t.answerFor(ctx, t.options.OtherImage)
	if err != nil {
		return err
	}
	if e := a.response.GetError(); e != nil {
		t.note("for %s it answers with an error (%s): `no credentials, no error` says that there are none, and does not keep other providers' answers from being cached", t.options.OtherImage, describe(e))
		return nil
	}
	for i, c := range a.response.GetCredentials() {
		if !keyMatches(c.GetKey(), t.options.OtherImage) {
			return fail("answer with no credentials for an image that the backend does not know", "asked for %s, it gives credentials[%d] for %q", t.options.OtherImage, i, shorten(c.GetKey()))
		}
	}
	if len(a.response.GetCredentials()) > 0 {
		t.note("it gives credentials for any host, %s included, with a key that matches: keep the provider's matchImages narrow, or a password goes to strangers", t.options.OtherImage)
	}
	return nil
}

func keyMatchesAny(a *answer, image string) bool {
	return a != nil && slices.ContainsFunc(a.response.GetCredentials(), func(c *backendv1.Credential) bool { return keyMatches(c.GetKey(), image) })
}

// oddRequest is what no kubelet sends.
type oddRequest struct {
	what    string
	request *backendv1.GetCredentialsRequest
}

func (t *trial) oddRequests() []oddRequest {
	var all []oddRequest
	for what, image := range map[string]string{
		"the empty image": "", "an image without a path": "registry.invalid", "an image that is only a slash": "/", "an image with an impossible port": "registry.invalid:99999/app",
		"an image on an IPv6 address": "[::1]:5000/app", "an image with a broken escape": "registry.invalid/%zz", "an image with dots in its path": "registry.invalid/../../etc/passwd",
		"an image with a new line": "registry.invalid/a\nb", "an image with shell characters": "registry.invalid/$(id);`id`'\"|&", "an image that looks like a flag": "--help",
		"an image of 4,096 bytes": "registry.invalid/" + strings.Repeat("a", 4079),
	} {
		all = append(all, oddRequest{what, t.request(image)})
	}
	slices.SortFunc(all, func(a, b oddRequest) int { return strings.Compare(a.what, b.what) })

	empty, nonsense := "", "no.token.at-all"
	later := t.request(t.options.OtherImage)
	later.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "of a later version"))
	many := map[string]string{}
	for i := range 500 {
		many[fmt.Sprintf("conformance.invalid/annotation-%d", i)] = strings.Repeat("x", 100)
	}
	return append(all,
		oddRequest{"an empty token", &backendv1.GetCredentialsRequest{Image: t.options.OtherImage, ServiceAccountToken: &empty}},
		oddRequest{"a token that is none", &backendv1.GetCredentialsRequest{Image: t.options.OtherImage, ServiceAccountToken: &nonsense}},
		oddRequest{"500 annotations", &backendv1.GetCredentialsRequest{Image: t.options.OtherImage, ServiceAccountAnnotations: many}},
		oddRequest{"neither token nor annotations", &backendv1.GetCredentialsRequest{Image: t.images()[0]}},
		oddRequest{"a field of a later version", later},
		oddRequest{"a deadline of its own that is no time", &backendv1.GetCredentialsRequest{Image: t.options.OtherImage, Deadline: &timestamppb.Timestamp{Seconds: 1 << 60, Nanos: -1}}},
	)
}

func oddRequests(ctx context.Context, t *trial) error {
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	for _, odd := range t.oddRequests() {
		if _, err := p.ask(ctx, odd.request); err != nil {
			return p.broken("sent "+odd.what, err)
		}
	}
	return p.stillAnswers(ctx, "after odd requests")
}

// stillAnswers asks as usual, and expects the usual answer.
func (p *process) stillAnswers(ctx context.Context, when string) error {
	for _, image := range p.trial.images() {
		a, err := p.trial.answerFor(ctx, image)
		if err != nil {
			return err
		}
		response, err := p.get(ctx, image)
		if err != nil {
			return p.broken("asked for credentials "+when, err)
		}
		if how := a.differs(response); how != "" {
			return fail("keep requests apart: what one leaves behind must not change the answer to another", "%s it gives %s %s", when, image, how)
		}
	}
	return nil
}

// images are those to ask for: the one that is served, if that is known, and the other one.
func (t *trial) images() []string {
	if t.options.Image == "" || t.failed["credentials"] {
		return []string{t.options.OtherImage}
	}
	return []string{t.options.Image, t.options.OtherImage}
}

// provoked are the errors that the backend gives when it is given every reason to, with what provoked them. What breaks another rule is left out.
func (t *trial) provoked(ctx context.Context) (errors map[string]*backendv1.Error, err error) {
	errors = map[string]*backendv1.Error{}
	record := func(what string, all ...*backendv1.Error) {
		for i, e := range all {
			if e != nil {
				errors[fmt.Sprintf("%s (%d)", what, i+1)] = e
			}
		}
	}
	for _, c := range []struct{ what, settings string }{
		{"null as its settings", `null`}, {"settings that break off", `{"`}, {"a field it does not know", string(t.with(unknown, []byte(`"x"`)))},
	} {
		p, err := t.start(ctx, launch{})
		if err != nil {
			return nil, err
		}
		early, _ := p.get(ctx, t.image())
		record("a request before it has settings", early.GetError())
		problems, _ := p.configure(ctx, []byte(c.settings))
		record(c.what, problems...)
		p.finish()
	}
	if t.failed["settings"] {
		return errors, nil
	}
	p, err := t.configured(ctx)
	if err != nil {
		return nil, err
	}
	for _, odd := range t.oddRequests() {
		response, err := p.ask(ctx, odd.request)
		if err != nil {
			if p, err = t.configured(ctx); err != nil {
				return nil, err
			}
		}
		record(odd.what, response.GetError())
	}
	return errors, nil
}

func judgeErrors(ctx context.Context, t *trial) error {
	errors, err := t.provoked(ctx)
	if err != nil {
		return err
	}
	const mend = "say in one line what was being done, to what, and what to try"
	const most = 4<<10 + 100
	for what, e := range errors {
		switch message := e.GetMessage(); {
		case strings.TrimSpace(message) == "":
			return fail(mend, "the error for %s has no message (%s)", what, e.GetKind())
		case len(message) > most:
			return fail(mend, "the error for %s has %d bytes", what, len(message))
		case strings.ContainsAny(message, "\r\n"):
			return fail(mend, "the error for %s has several lines: %q", what, shorten(message))
		case backendv1.Error_Kind_name[int32(e.GetKind())] == "":
			return fail("use the kinds of the protocol", "the error for %s is of kind %d", what, e.GetKind())
		}
	}
	if len(errors) == 0 {
		t.note("nothing provoked an error")
	}
	return nil
}

func judgeCheck(ctx context.Context, t *trial) error {
	p, err := t.configured(ctx)
	if err != nil {
		return err
	}
	about, err := p.describe(ctx)
	if err != nil {
		return t.unless("describe", p.broken("asked to describe itself", err))
	}
	if !slices.Contains(about.GetFeatures(), backendv1.Feature_FEATURE_CHECK) {
		return notRun("the backend does not name FEATURE_CHECK")
	}
	for _, image := range []string{"", t.image()} {
		what := "asked to check itself without an image"
		if image != "" {
			what = "asked to check itself for " + image
		}
		request := t.request(image)
		ctx, cancel := t.call(ctx)
		response, err := p.rpc.Check(ctx, &backendv1.CheckRequest{
			Image: image, ServiceAccountToken: request.ServiceAccountToken, ServiceAccountAnnotations: request.GetServiceAccountAnnotations(),
		})
		cancel()
		if status.Code(err) == codes.Unimplemented {
			return notRun("the backend answers UNIMPLEMENTED: it has nothing to check")
		}
		if err != nil {
			return p.broken(what, err)
		}
		if e := response.GetError(); e != nil {
			if strings.TrimSpace(e.GetMessage()) == "" {
				return fail("say why the provider cannot do its job, and what to do about it", "%s, it gives no reason", what)
			}
			if image == t.options.Image && image != "" {
				t.note("Check says that it cannot do its job for %s: %s", image, describe(e))
			}
		}
	}
	return nil
}

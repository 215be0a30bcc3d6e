package cloud

import "errors"

// Repository is an image repository of a private registry.
type Repository struct {
	Name string
	// Pull are the principals (ARNs) or accounts that the repository's policy lets pull, beyond the registry's own account.
	Pull []string
	// PullThrough: it belongs to a pull-through cache, and pulling needs ecr:BatchImportUpstreamImage too.
	PullThrough bool
}

type registry struct{}

// AddRegistry makes a private registry under one of ECR's host names, or adds repositories to it.
func (c *Cloud) AddRegistry(host string, repositories ...Repository) {}

// Pull is what the registry says to a pull of image ("host/name[:tag]") with this credential: nil or a refusal. An empty user name is an anonymous pull.
func (c *Cloud) Pull(image, username, password string) error { return errors.ErrUnsupported }

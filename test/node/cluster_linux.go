package node

import "testing"

// Cluster is there soon.
type Cluster struct{ kubeconfig string }

var _ testing.TB

// Package node is a Kubernetes node made of the real parts, for tests: the kubelet and, where a test wants a cluster, kube-apiserver (built from the module in kubernetes/ and kept in the user's cache
// directory), and Debian's containerd, runc, docker-registry and etcd (unpacked by tools/node-packages.sh, not installed); crictl and BuildKit, of the modules in crictl/ and buildkit/, are its users. The product stands in it as packages install it.
//
// A test begins with New, describes registries, images and a BrokerConfig, starts the kubelet, and ends with a pod that runs or is refused. Everything listens on loopback and lives below one
// temporary directory; it is ended and removed when the test ends, and what a killed test leaves behind the next one removes.
//
// It needs root, and changes things that a kubelet changes (cgroups, mounts, a few sysctl values, which it restores): so New skips the test unless NODE_TEST=1, which `make node-test` sets.
package node

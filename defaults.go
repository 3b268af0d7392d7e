package leasehold

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfig is the configuration that kubectl would use here.
func kubeconfig() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil)
}

// defaultConfig returns the in-cluster configuration or, outside a cluster, the kubeconfig's.
func defaultConfig() (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if !errors.Is(err, rest.ErrNotInCluster) {
		return config, err
	}
	config, err = kubeconfig().ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("not in a cluster, and no kubeconfig at $KUBECONFIG or ~/.kube/config: " +
			"use WithRESTConfig or WithClient to say which API server holds the Lease")
	}
	return config, err
}

var namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace" // but for tests

// defaultNamespace returns the service account's namespace or, outside a cluster, that of the
// kubeconfig's context, else "default".
func defaultNamespace() (string, error) {
	if data, err := os.ReadFile(namespaceFile); err == nil {
		if ns := strings.TrimSpace(string(data)); ns != "" {
			return ns, nil
		}
	}
	ns, _, err := kubeconfig().Namespace()
	if err != nil && !clientcmd.IsEmptyConfig(err) {
		return "", fmt.Errorf("which namespace: %w", err)
	}
	if ns == "" {
		ns = "default"
	}
	return ns, nil
}

// newIdentity returns an identity that no other campaign has.
func newIdentity() string {
	name := os.Getenv("POD_NAME")
	if name == "" {
		name, _ = os.Hostname() // without a name, the uuid is enough
	}
	return strings.TrimPrefix(name+"_"+string(uuid.NewUUID()), "_")
}

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/leasehold-go/leasehold"
)

// A cluster selects the API server and the user, by the flags that kubectl has.
type cluster struct {
	kubeconfig string
	overrides  clientcmd.ConfigOverrides
}

func (c *cluster) flags(flags *pflag.FlagSet) {
	flags.StringVar(&c.kubeconfig, "kubeconfig", "",
		"path to the kubeconfig file (default $KUBECONFIG, else ~/.kube/config; in a pod its service account)")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	clientcmd.BindOverrideFlags(&c.overrides, flags, names)
}

func (c *cluster) config() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &c.overrides)
}

// namespace returns the value of --namespace, else the namespace of the service account or of the kubeconfig's context.
func (c *cluster) namespace() (string, error) {
	ns, _, err := c.config().Namespace()
	if err != nil && !clientcmd.IsEmptyConfig(err) {
		return "", err
	}
	if ns == "" {
		ns = "default"
	}
	return ns, nil
}

func (c *cluster) restConfig() (*rest.Config, error) {
	config, err := c.config().ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("no API server: not in a cluster, " +
			"and no kubeconfig at $KUBECONFIG or ~/.kube/config; use --kubeconfig or --server")
	}
	if err != nil {
		return nil, err
	}
	config.UserAgent = "leasehold " + rest.DefaultKubernetesUserAgent()
	return config, nil
}

func (c *cluster) client() (coordinationv1client.CoordinationV1Interface, error) {
	config, err := c.restConfig()
	if err != nil {
		return nil, err
	}
	return coordinationv1client.NewForConfig(config)
}

// options returns the library's options for the API server and the namespace.
func (c *cluster) options() ([]leasehold.Option, error) {
	config, err := c.restConfig()
	if err != nil {
		return nil, err
	}
	ns, err := c.namespace()
	if err != nil {
		return nil, fmt.Errorf("which namespace: %w", err)
	}
	return []leasehold.Option{leasehold.WithRESTConfig(config), leasehold.WithNamespace(ns)}, nil
}

//go:build !race

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/leasehold-go/leasehold/testbed/internal/datadir"
)

// etcdSocket is where etcd listens, in the working directory: no port to find and no credentials to check.
var etcdSocket = url.URL{Scheme: "unix", Host: datadir.EtcdSocket}

const (
	patience = 2 * time.Minute  // for the start; a busy machine may need much of it
	grace    = 10 * time.Second // for the stop
)

// server is an API server and its etcd. There is one in the life of a process: Kubernetes keeps global state.
type server struct {
	failed <-chan error // sends when the API server ends
	cancel context.CancelFunc
	etcd   *embed.Etcd
}

// start returns when the API server is ready and its kubeconfig is written. The working directory is dir.
func start(ctx context.Context, dir *datadir.Dir, l net.Listener, o options) (*server, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not ready within %v", patience))
	defer cancel()
	etcd, err := startEtcd(ctx, o.fsync)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	run, stop := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() { failed <- runAPIServer(run, l, o.coordinated, o.gates) }()
	s := &server{failed: failed, cancel: stop, etcd: etcd}

	admin, err := dir.UserConfig("https://"+l.Addr().String(), "admin", datadir.AdminGroup)
	if err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx, admin); err != nil {
		return nil, err
	}
	return s, dir.WriteKubeconfig(datadir.Kubeconfig, admin)
}

// stop ends the API server, then etcd, within grace.
func (s *server) stop() error {
	stopped := make(chan error, 1)
	go func() {
		s.cancel()
		err := <-s.failed
		s.etcd.Close()
		stopped <- err
	}()
	select {
	case err := <-stopped:
		return err
	case <-time.After(grace):
		return fmt.Errorf("not stopped within %v, killed", grace)
	}
}

func startEtcd(ctx context.Context, fsync bool) (*embed.Etcd, error) {
	cfg := embed.NewConfig()
	cfg.Dir = "etcd"
	cfg.UnsafeNoFsync = !fsync
	cfg.LogLevel = "warn"
	cfg.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration // else each request is one
	cfg.ListenClientUrls = []url.URL{etcdSocket}
	cfg.ListenPeerUrls = nil // it has none
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case err := <-etcd.Err():
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// runAPIServer returns when ctx ends or the API server cannot go on.
func runAPIServer(ctx context.Context, l net.Listener, coordinated bool, gates string) error {
	o := kubeoptions.NewServerRunOptions()
	o.Etcd.StorageConfig.Transport.ServerList = []string{etcdSocket.String()}
	o.SecureServing.Listener = l
	o.SecureServing.ServerCert.CertKey.CertFile = datadir.ServerCert
	o.SecureServing.ServerCert.CertKey.KeyFile = datadir.ServerKey
	o.GenericServerRunOptions.AdvertiseAddress = net.IPv4(127, 0, 0, 1)
	o.EndpointReconcilerType = "none" // Endpoints of the service "kubernetes" cannot have a loopback address
	o.ServiceClusterIPRanges = "10.0.0.0/16"
	o.Authentication.ClientCert.ClientCA = datadir.CACert
	o.Authentication.ServiceAccounts.Issuers = []string{"https://kubernetes.default.svc"}
	o.Authentication.ServiceAccounts.KeyFiles = []string{datadir.ServiceAccountKey}
	o.ServiceAccountSigningKeyFile = datadir.ServiceAccountKey
	o.Authorization.Modes = []string{"RBAC"}
	if coordinated {
		gates := map[string]bool{string(features.CoordinatedLeaderElection): true}
		if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(gates); err != nil {
			return err
		}
		if err := o.APIEnablement.RuntimeConfig.Set("coordination.k8s.io/v1beta1=true"); err != nil {
			return err
		}
	}
	if err := utilfeature.DefaultMutableFeatureGate.Set(gates); err != nil {
		return err
	}
	if err := o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // about its own requests

	completed, err := o.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	return app.Run(ctx, completed)
}

// awaitReady waits until the API server reports that it is ready, RBAC's bootstrap policy included, and until the
// namespace "default" exists, which it creates a little later.
func (s *server) awaitReady(ctx context.Context, admin *rest.Config) error {
	client, err := rest.HTTPClientFor(admin)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	ok := func(path string) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin.Host+path, nil)
		if err != nil {
			return false
		}
		resp, err := client.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	for !ok("/readyz") || !ok("/api/v1/namespaces/default") {
		select {
		case <-time.After(20 * time.Millisecond):
		case err := <-s.failed:
			return fmt.Errorf("the API server ended: %w", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

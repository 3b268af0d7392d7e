package leasehold

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/internal/fakenet"
	"github.com/leasehold-go/leasehold/leasetest"
)

// An apiServer serves the Leases of a leasetest.Server over HTTP, in JSON, on a network in memory.
type apiServer struct {
	*fakenet.Network
	leases *leasetest.Server
	client *leasetest.Client

	forbidWatch bool
	token       atomic.Value // that requests must have; none if it is nil
}

// overNetwork runs test in virtual time, with an API server behind a network with that round trip.
func overNetwork(t *testing.T, roundTrip time.Duration, test func(*testing.T, *apiServer)) {
	synctest.Test(t, func(t *testing.T) {
		s := &apiServer{Network: fakenet.New(roundTrip), leases: leasetest.NewServer()}
		s.client = s.leases.Client("http")
		s.Serve(t, s, nil)
		test(t, s)
	})
}

// config returns a configuration that connects to the server.
func (s *apiServer) config() *rest.Config {
	return &rest.Config{Host: "https://server.example", Dial: s.Dial,
		TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if token := s.token.Load(); token != nil && req.Header.Get("Authorization") != "Bearer "+token.(string) {
		respond(w, nil, apierrors.NewUnauthorized("no such token"))
		return
	}
	path := strings.Split(strings.TrimPrefix(req.URL.Path, "/apis/coordination.k8s.io/v1/namespaces/"), "/")
	leases, query, name := s.client.Leases(path[0]), req.URL.Query(), ""
	if len(path) == 3 {
		name = path[2]
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	manager := query.Get("fieldManager")
	var lease *coordinationv1.Lease
	switch {
	case query.Get("watch") != "" && s.forbidWatch:
		err = apierrors.NewForbidden(schema.GroupResource{Resource: "leases"}, name, nil)
	case query.Get("watch") != "":
		s.watch(w, req, path[0])
		return
	case req.Method == http.MethodGet:
		lease, err = leases.Get(req.Context(), name, metav1.GetOptions{})
	case req.Method == http.MethodPost:
		if err = json.Unmarshal(body, &lease); err == nil {
			lease, err = leases.Create(req.Context(), lease, metav1.CreateOptions{FieldManager: manager})
		}
	case req.Method == http.MethodPatch:
		opts := metav1.PatchOptions{FieldManager: manager}
		if query.Get("force") != "" {
			opts.Force = new(true)
		}
		lease, err = leases.Patch(req.Context(), name, types.PatchType(req.Header.Get("Content-Type")), body, opts)
	case req.Method == http.MethodDelete:
		var opts metav1.DeleteOptions
		if err = json.Unmarshal(body, &opts); err == nil {
			err = leases.Delete(req.Context(), name, opts)
		}
		lease = &coordinationv1.Lease{}
	}
	respond(w, lease, err)
}

func respond(w http.ResponseWriter, lease *coordinationv1.Lease, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		status, ok := err.(apierrors.APIStatus)
		if !ok {
			status = apierrors.NewInternalError(err)
		}
		failure := status.Status()
		failure.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		w.WriteHeader(int(failure.Code))
		json.NewEncoder(w).Encode(failure)
		return
	}
	lease.TypeMeta = metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
	json.NewEncoder(w).Encode(lease)
}

func (s *apiServer) watch(w http.ResponseWriter, req *http.Request, namespace string) {
	query := req.URL.Query()
	watch, err := s.client.Leases(namespace).Watch(req.Context(), metav1.ListOptions{
		FieldSelector: query.Get("fieldSelector"), ResourceVersion: query.Get("resourceVersion"),
		AllowWatchBookmarks: query.Get("allowWatchBookmarks") != "",
	})
	if err != nil {
		respond(w, nil, err)
		return
	}
	defer watch.Stop()
	w.Header().Set("Content-Type", "application/json")
	w.(http.Flusher).Flush()
	for event := range watch.ResultChan() {
		if lease, ok := event.Object.(*coordinationv1.Lease); ok {
			lease.TypeMeta = metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"}
		}
		json.NewEncoder(w).Encode(map[string]any{"type": event.Type, "object": event.Object})
		w.(http.Flusher).Flush()
	}
}

// failures collects what a campaign logs at the level Warn and above.
type failures struct{ bytes.Buffer }

func (f *failures) option(o *options) {
	o.log = slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

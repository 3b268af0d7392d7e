// Package leaserest is a client of the Lease API for programs that need nothing else of Kubernetes: a typed client of
// client-go links the types of all API groups, which are 20 MB of a program.
package leaserest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion/queryparams"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// A Client makes each request once, and logs nothing.
type Client struct {
	http      *http.Client
	base      *url.URL
	accept    []string                                     // header Accept
	userAgent []string                                     // header User-Agent
	warn      func(context.Context, utilnet.WarningHeader) // nil where nobody wants to hear of warnings
}

// New returns a client of the API server that config names. Requests go through next, which authenticates them.
func New(config *rest.Config, next http.RoundTripper) (*Client, error) {
	c := *config
	c.GroupVersion = &coordinationv1.SchemeGroupVersion
	c.APIPath = "/apis"
	base, path, err := rest.DefaultServerUrlFor(&c)
	if err != nil {
		return nil, err
	}
	base.Path = strings.TrimRight(base.Path, "/") + path
	client := &Client{
		http:      &http.Client{Transport: next},
		base:      base,
		accept:    []string{contentProtobuf + "," + contentJSON},
		userAgent: []string{cmp.Or(config.UserAgent, rest.DefaultKubernetesUserAgent())},
	}
	if wants := config.AcceptContentTypes + config.ContentType; wants != "" &&
		!strings.Contains(wants, contentProtobuf) {
		client.accept[0] = contentJSON
	}
	switch {
	case config.WarningHandlerWithContext != nil:
		client.warn = func(ctx context.Context, w utilnet.WarningHeader) {
			config.WarningHandlerWithContext.HandleWarningHeaderWithContext(ctx, w.Code, w.Agent, w.Text)
		}
	case config.WarningHandler != nil:
		client.warn = func(_ context.Context, w utilnet.WarningHeader) {
			config.WarningHandler.HandleWarningHeader(w.Code, w.Agent, w.Text)
		}
	}
	return client, nil
}

// Leases returns the Leases of a namespace, of all namespaces for List and Watch if it is empty.
func (c *Client) Leases(namespace string) *Leases { return &Leases{client: c, namespace: namespace} }

// Leases are those of a namespace. The methods are as those of a typed client; the errors are API errors where the
// server answered with one, and tell how long it asked to wait (apierrors.SuggestsClientDelay).
type Leases struct {
	client    *Client
	namespace string
	watches   atomic.Int32         // that are open
	written   atomic.Pointer[echo] // by the last patch, until a watch brings it
}

// Get reads a Lease.
func (l *Leases) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	return l.lease(ctx, http.MethodGet, name, &opts, "", nil)
}

// List reads the Leases that opts select.
func (l *Leases) List(ctx context.Context, opts metav1.ListOptions) (*coordinationv1.LeaseList, error) {
	list := &coordinationv1.LeaseList{}
	return list, l.do(ctx, http.MethodGet, "", &opts, "", nil, list)
}

// Create creates a Lease.
func (l *Leases) Create(
	ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	typed := *lease
	typed.SetGroupVersionKind(coordinationv1.SchemeGroupVersion.WithKind("Lease"))
	body, err := json.Marshal(&typed)
	if err != nil {
		return nil, err
	}
	return l.lease(ctx, http.MethodPost, "", &opts, contentJSON, body)
}

// Patch changes a Lease.
func (l *Leases) Patch(
	ctx context.Context, name string, kind types.PatchType, patch []byte, opts metav1.PatchOptions,
	subresources ...string,
) (*coordinationv1.Lease, error) {
	if len(subresources) > 0 {
		return nil, fmt.Errorf("a Lease has no subresources, not %s", strings.Join(subresources, "/"))
	}
	return l.lease(ctx, http.MethodPatch, name, &opts, string(kind), patch)
}

// Delete deletes a Lease.
func (l *Leases) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	opts.SetGroupVersionKind(coordinationv1.SchemeGroupVersion.WithKind("DeleteOptions"))
	body, err := json.Marshal(&opts)
	if err != nil {
		return err
	}
	return l.do(ctx, http.MethodDelete, name, &metav1.GetOptions{}, contentJSON, body, nil)
}

// Watch watches the Leases that opts select. The watch ends with ctx. The object of an event may be the one that an
// earlier call has returned: nobody may change it.
func (l *Leases) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	opts.Watch = true
	ctx, cancel := context.WithCancel(ctx)
	resp, err := l.send(ctx, http.MethodGet, "", &opts, "", nil)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watcher{leases: l, events: make(chan watch.Event), cancel: cancel}
	l.watches.Add(1)
	go w.run(ctx, resp)
	return w, nil
}

func (l *Leases) lease(
	ctx context.Context, method, name string, opts any, content string, body []byte,
) (*coordinationv1.Lease, error) {
	lease := &coordinationv1.Lease{}
	if err := l.do(ctx, method, name, opts, content, body, lease); err != nil {
		return nil, err
	}
	return lease, nil
}

// do makes a request, and decodes its answer into answer, if that is not nil.
func (l *Leases) do(
	ctx context.Context, method, name string, opts any, content string, body []byte, answer message,
) error {
	resp, err := l.send(ctx, method, name, opts, content, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := readAll(resp)
	if err != nil || answer == nil {
		return err
	}
	if err := decode(resp.Header.Get("Content-Type"), data, answer); err != nil {
		return err
	}
	if lease, ok := answer.(*coordinationv1.Lease); ok && method == http.MethodPatch && l.watches.Load() > 0 {
		l.written.Store(&echo{data, lease})
	}
	return nil
}

// send makes a request. An answer that is no success is an error.
func (l *Leases) send(
	ctx context.Context, method, name string, opts any, content string, body []byte,
) (*http.Response, error) {
	query, err := encode(opts)
	if err != nil {
		return nil, err
	}
	u := *l.client.base
	if l.namespace != "" {
		u.Path += "/namespaces/" + l.namespace
	}
	u.Path += "/leases"
	if name != "" {
		u.Path += "/" + name
	}
	u.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, "/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.URL, req.Host = &u, u.Host
	req.Header["Accept"] = l.client.accept
	req.Header["User-Agent"] = l.client.userAgent
	if content != "" {
		req.Header.Set("Content-Type", content)
	}
	resp, err := l.client.http.Do(req)
	if err != nil {
		return nil, err
	}
	l.client.warnOf(ctx, resp)
	if resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, failure(resp, method, name)
}

// encode returns opts as a query. Those of a renewal are encoded without reflection.
func encode(opts any) (string, error) {
	if p, ok := opts.(*metav1.PatchOptions); ok && p.Force == nil && p.DryRun == nil && p.FieldValidation == "" {
		return "fieldManager=" + url.QueryEscape(p.FieldManager), nil
	}
	query, err := queryparams.Convert(opts)
	return query.Encode(), err
}

func (c *Client) warnOf(ctx context.Context, resp *http.Response) {
	headers := resp.Header["Warning"]
	if len(headers) == 0 || c.warn == nil {
		return
	}
	warnings, _ := utilnet.ParseWarningHeaders(headers)
	for _, w := range warnings {
		c.warn(ctx, w)
	}
}

// mostBytes bounds what is read of an answer.
const mostBytes = 16 << 20

func readAll(resp *http.Response) ([]byte, error) {
	if n := resp.ContentLength; n > 0 && n <= mostBytes {
		data := make([]byte, n)
		_, err := io.ReadFull(resp.Body, data)
		return data, err
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, mostBytes+1))
	if err == nil && len(data) > mostBytes {
		err = errors.New("the answer is too long")
	}
	return data, err
}

// failure returns the API error that resp is.
func failure(resp *http.Response, method, name string) error {
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	seconds = max(0, min(seconds, 3600))
	data, err := readAll(resp)
	if err != nil {
		return err
	}
	status := &metav1.Status{}
	if decode(resp.Header.Get("Content-Type"), data, status) == nil && status.Status == metav1.StatusFailure {
		if seconds > 0 {
			if status.Details == nil {
				status.Details = &metav1.StatusDetails{}
			}
			status.Details.RetryAfterSeconds = int32(seconds)
		}
		return &apierrors.StatusError{ErrStatus: *status}
	}
	text := strings.TrimSpace(string(data[:min(len(data), 1024)]))
	return apierrors.NewGenericServerResponse(resp.StatusCode, method, coordinationv1.Resource("leases"), name, text,
		seconds, true)
}

package leasetest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var leasesResource = coordinationv1.Resource("leases")

// TooManyRequests is the answer of API priority and fairness: 429 with Retry-After, in whole seconds rounded up.
func TooManyRequests(retryAfter time.Duration) error {
	seconds := int((retryAfter + time.Second - 1) / time.Second)
	return apierrors.NewTooManyRequests("too many requests, please try again later.", seconds)
}

// InternalError is a 500, as when etcd has no leader.
func InternalError() error {
	return apierrors.NewInternalError(fmt.Errorf("etcdserver: leader changed"))
}

// ServerTimeout is a 504: the server gave up waiting for its storage. The write may or may not have happened.
func ServerTimeout() error {
	return apierrors.NewTimeoutError("request did not complete within requested timeout - context deadline exceeded", 0)
}

// ServiceUnavailable is a 503, as from a server that is starting or stopping.
func ServiceUnavailable() error {
	return apierrors.NewServiceUnavailable("apiserver is shutting down")
}

// Unauthorized is a 401, as for a token that has expired.
func Unauthorized() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnauthorized,
		Reason: metav1.StatusReasonUnauthorized, Message: "Unauthorized",
	}}
}

// Forbidden is RBAC's 403 for the service account "leasetest". A request for the verb apply is authorized as patch.
func Forbidden(r Request) error {
	verb := r.Verb
	if verb == "apply" {
		verb = "patch"
	}
	reason := fmt.Sprintf("User %q cannot %s resource %q in API group %q in the namespace %q",
		"system:serviceaccount:"+r.Namespace+":leasetest", verb, leasesResource.Resource, leasesResource.Group,
		r.Namespace)
	return apierrors.NewForbidden(leasesResource, r.Name, errors.New(reason))
}

// ConnectionRefused is a client's error when nothing listens: the request has not taken effect.
func ConnectionRefused() error {
	return netError("dial", os.NewSyscallError("connect", syscall.ECONNREFUSED))
}

// ConnectionReset is a client's error when the server dies during a request, which may or may not have taken effect.
func ConnectionReset() error {
	return netError("read", os.NewSyscallError("read", syscall.ECONNRESET))
}

// EOF is a client's error when the connection is closed during a request, which may or may not have taken effect.
func EOF() error {
	return &url.Error{Op: "Get", URL: serverURL, Err: io.EOF}
}

// NetTimeout is a timeout of the connection, not of the caller's ctx. The request may or may not have taken effect.
func NetTimeout() error {
	return netError("read", os.ErrDeadlineExceeded)
}

// serverURL stands in network errors where a real one has the server's address.
const serverURL = "https://leasetest/apis/coordination.k8s.io/v1/leases"

func netError(op string, err error) error {
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 6443}
	return &url.Error{Op: "Get", URL: serverURL, Err: &net.OpError{Op: op, Net: "tcp", Addr: addr, Err: err}}
}

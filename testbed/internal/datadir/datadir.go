// Package datadir is the directory of a control plane: the files that its command writes and that the programs around
// it read. A control plane started again in the same directory has the same certificate authority and the same
// address, so that every kubeconfig made for it stays valid.
package datadir

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The files of a control plane, relative to its directory.
const (
	CACert            = "ca.crt"
	CAKey             = "ca.key"
	ServerCert        = "server.crt"
	ServerKey         = "server.key"
	ServiceAccountKey = "service-account.key"
	Kubeconfig        = "kubeconfig" // of the administrator, rewritten at every start
	Log               = "log"        // of the API server and etcd, appended to
	EtcdSocket        = "etcd.sock"  // where etcd listens
)

// AdminGroup is the group that RBAC's bootstrap policy lets do anything.
const AdminGroup = "system:masters"

// Dir is a directory with a certificate authority in it. It is safe for concurrent use.
type Dir struct {
	path string // absolute
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Create opens the directory of a control plane, making what is missing: the directory, its certificate authority and
// the keys of the API server. It refuses a directory with other things in it.
func Create(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(path, CACert)); errors.Is(err, fs.ErrNotExist) {
		if err := initialize(path); err != nil {
			return nil, err
		}
	}
	return Open(path)
}

// Open opens a directory that Create has made.
func Open(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	certPEM, err := os.ReadFile(filepath.Join(path, CACert))
	if err != nil {
		return nil, err
	}
	keyPEM, err := os.ReadFile(filepath.Join(path, CAKey))
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path}
	if d.cert, err = x509.ParseCertificate(decode(certPEM)); err != nil {
		return nil, fmt.Errorf("%s: %w", CACert, err)
	}
	if d.key, err = x509.ParseECPrivateKey(decode(keyPEM)); err != nil {
		return nil, fmt.Errorf("%s: %w", CAKey, err)
	}
	return d, nil
}

// Path is the absolute path of a file in the directory.
func (d *Dir) Path(file string) string { return filepath.Join(d.path, file) }

// Config is the administrator's way to the API server, as last written by WriteKubeconfig.
func (d *Dir) Config() (*rest.Config, error) {
	return clientcmd.BuildConfigFromFlags("", d.Path(Kubeconfig))
}

// UserConfig is a way to the API server at url for a user by a client certificate of its own, which needs no
// acquaintance with the server beforehand.
func (d *Dir) UserConfig(url, user string, groups ...string) (*rest.Config, error) {
	cert, key, err := d.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host:            url,
		TLSClientConfig: rest.TLSClientConfig{CAData: encode("CERTIFICATE", d.cert.Raw), CertData: cert, KeyData: key},
	}, nil
}

// WriteKubeconfig writes cfg, made by UserConfig, as a kubeconfig to a file in the directory.
func (d *Dir) WriteKubeconfig(file string, cfg *rest.Config) error {
	const name = "controlplane"
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters[name] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	kubeconfig.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData}
	kubeconfig.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	kubeconfig.CurrentContext = name
	return clientcmd.WriteToFile(*kubeconfig, d.Path(file))
}

// Port is where the API server listened when the kubeconfig was last written, "0" if it never was.
func (d *Dir) Port() (string, error) {
	cfg, err := d.Config()
	if errors.Is(err, fs.ErrNotExist) {
		return "0", nil
	} else if err != nil {
		return "", err
	}
	u, err := url.Parse(cfg.Host)
	if err != nil {
		return "", err
	}
	return u.Port(), nil
}

func initialize(path string) error {
	if entries, err := os.ReadDir(path); err != nil {
		return err
	} else if len(entries) > 0 {
		return fmt.Errorf("%s holds %s and no control plane: want a new or empty directory, or one of a control plane",
			path, entries[0].Name())
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	d := &Dir{path: path, key: key, cert: &x509.Certificate{Subject: pkix.Name{CommonName: "controlplane-ca"}}}
	ca, err := d.sign(&x509.Certificate{
		Subject:               d.cert.Subject,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, &key.PublicKey)
	if err != nil {
		return err
	}
	if d.cert, err = x509.ParseCertificate(ca); err != nil {
		return err
	}
	caKey, err := marshalKey(key)
	if err != nil {
		return err
	}
	_, serviceAccountKey, err := d.issue(&x509.Certificate{}) // only the key counts
	if err != nil {
		return err
	}
	serverCert, serverKey, err := d.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		return err
	}
	// The authority's certificate comes last: with it the directory is complete.
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{ServerCert, serverCert}, {ServerKey, serverKey}, {ServiceAccountKey, serviceAccountKey},
		{CAKey, caKey}, {CACert, encode("CERTIFICATE", ca)},
	} {
		if err := os.WriteFile(d.Path(f.name), f.content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// issue makes a key and a certificate for it, both PEM.
func (d *Dir) issue(template *x509.Certificate) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := d.sign(template, &k.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	key, err = marshalKey(k)
	return encode("CERTIFICATE", der), key, err
}

// sign completes template with a serial number and a term of ten years.
func (d *Dir) sign(template *x509.Certificate, pub *ecdsa.PublicKey) ([]byte, error) {
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = template.NotBefore.AddDate(10, 0, 0)
	return x509.CreateCertificate(rand.Reader, template, d.cert, pub, d.key) // picks a serial number itself
}

func marshalKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(k)
	return encode("EC PRIVATE KEY", der), err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// decode returns nothing, which no parser accepts, for what is not PEM.
func decode(data []byte) []byte {
	if block, _ := pem.Decode(data); block != nil {
		return block.Bytes
	}
	return nil
}

// An SSH server of golang.org/x/crypto/ssh for the tests: it forwards TCP both ways and does nothing else.
//
// Arguments: the folder with host_key, authorized_keys and password; the user; the port of 127.0.0.1.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/crypto/ssh"
)

// target is the extra data of direct-tcpip and forwarded-tcpip (RFC 4254, section 7.2): the destination, the origin.
type target struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// place is the data of tcpip-forward and cancel-tcpip-forward (RFC 4254, section 7.1).
type place struct {
	Host string
	Port uint32
}

func address(host string, port uint32) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// join copies both ways; each direction ends by itself, so that a half-close is passed on.
func join(channel ssh.Channel, connection *net.TCPConn) {
	ended := make(chan struct{})
	go func() {
		io.Copy(connection, channel)
		connection.CloseWrite()
		close(ended)
	}()
	io.Copy(channel, connection)
	channel.CloseWrite()
	<-ended
	channel.Close()
	connection.Close()
}

func direct(request ssh.NewChannel) {
	var to target
	if err := ssh.Unmarshal(request.ExtraData(), &to); err != nil {
		request.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	connection, err := net.Dial("tcp", address(to.Host, to.Port))
	if err != nil {
		request.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	channel, requests, err := request.Accept()
	if err != nil {
		connection.Close()
		return
	}
	go ssh.DiscardRequests(requests)
	join(channel, connection.(*net.TCPConn))
}

// forwarded offers the client a channel for each connection to a listener that it has asked for.
func forwarded(client *ssh.ServerConn, listener net.Listener, asked place) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			origin := connection.RemoteAddr().(*net.TCPAddr)
			data := ssh.Marshal(&target{asked.Host, asked.Port, origin.IP.String(), uint32(origin.Port)})
			channel, requests, err := client.OpenChannel("forwarded-tcpip", data)
			if err != nil {
				connection.Close()
				return
			}
			go ssh.DiscardRequests(requests)
			join(channel, connection.(*net.TCPConn))
		}()
	}
}

func serve(connection net.Conn, config *ssh.ServerConfig) {
	client, channels, requests, err := ssh.NewServerConn(connection, config)
	if err != nil {
		log.Print(err)
		connection.Close()
		return
	}
	go func() {
		for request := range channels {
			if request.ChannelType() == "direct-tcpip" {
				go direct(request)
			} else {
				request.Reject(ssh.UnknownChannelType, "this server only forwards")
			}
		}
	}()
	listeners := map[place]net.Listener{}
	for request := range requests { // one at a time, until the connection ends
		var asked place
		if ssh.Unmarshal(request.Payload, &asked) != nil {
			asked = place{}
		}
		switch listener := listeners[asked]; {
		case request.Type == "tcpip-forward" && listener == nil:
			listener, err := net.Listen("tcp", address(asked.Host, asked.Port))
			if err != nil {
				request.Reply(false, nil)
				continue
			}
			var reply []byte
			if asked.Port == 0 {
				asked.Port = uint32(listener.Addr().(*net.TCPAddr).Port)
				reply = ssh.Marshal(&struct{ Port uint32 }{asked.Port})
			}
			listeners[asked] = listener
			request.Reply(true, reply)
			go forwarded(client, listener, asked)
		case request.Type == "cancel-tcpip-forward" && listener != nil:
			listener.Close()
			delete(listeners, asked)
			request.Reply(true, nil)
		default:
			request.Reply(false, nil)
		}
	}
	for _, listener := range listeners {
		listener.Close()
	}
}

func read(name string) []byte {
	data, err := os.ReadFile(filepath.Join(os.Args[1], name))
	if err != nil {
		log.Fatal(err)
	}
	return data
}

func main() {
	log.SetFlags(0)
	user, password := os.Args[2], read("password")
	authorized, _, _, _, err := ssh.ParseAuthorizedKey(read("authorized_keys"))
	if err != nil {
		log.Fatal(err)
	}
	hostKey, err := ssh.ParsePrivateKey(read("host_key"))
	if err != nil {
		log.Fatal(err)
	}
	wrong := errors.New("wrong user, key or password")
	config := &ssh.ServerConfig{
		PasswordCallback: func(client ssh.ConnMetadata, given []byte) (*ssh.Permissions, error) {
			if client.User() == user && bytes.Equal(given, password) {
				return nil, nil
			}
			return nil, wrong
		},
		PublicKeyCallback: func(client ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if client.User() == user && bytes.Equal(key.Marshal(), authorized.Marshal()) {
				return nil, nil
			}
			return nil, wrong
		},
	}
	config.AddHostKey(hostKey)
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(os.Stderr, "Server listening on", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(connection, config)
	}
}

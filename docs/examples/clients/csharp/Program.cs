// Prints the five best classes of a picture: dotnet run -- HOST:PORT PICTURE [--tls] [--ca FILE] [--key KEY] …
// Not run by this project's tests, which have no .NET; it follows the same rules as the clients beside it, which are.
using System.Globalization;
using System.Net.Security;
using System.Security.Cryptography.X509Certificates;
using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;
using Tensorflow;
using Tensorflow.Serving;

const int Largest = 64 << 20;
var options = new Dictionary<string, string> { ["input"] = "images", ["timeout"] = "10" };
var positional = new List<string>();
for (var i = 0; i < args.Length; i++)
{
    if (!args[i].StartsWith("--")) positional.Add(args[i]);
    else if (args[i] == "--tls") options["tls"] = "";
    else if (i + 1 < args.Length) options[args[i][2..]] = args[++i];
}
if (positional.Count != 2)
{
    Console.Error.WriteLine("usage: score HOST:PORT PICTURE [--tls] [--ca FILE] [--key KEY] [--service NAME]");
    return 2;
}
var (address, picture) = (positional[0], positional[1]);
var secure = options.ContainsKey("tls") || options.ContainsKey("ca");

var handler = new SocketsHttpHandler();
if (options.TryGetValue("ca", out var ca))
{
    var policy = new X509ChainPolicy
    {
        TrustMode = X509ChainTrustMode.CustomRootTrust,
        RevocationMode = X509RevocationMode.NoCheck,
    };
    policy.CustomTrustStore.ImportFromPemFile(ca);
    handler.SslOptions = new SslClientAuthenticationOptions { CertificateChainPolicy = policy };
}

// Only a server that cannot be reached or is not ready is asked again.
var retry = new MethodConfig
{
    Names = { MethodName.Default },
    RetryPolicy = new RetryPolicy
    {
        MaxAttempts = 5,
        InitialBackoff = TimeSpan.FromSeconds(0.1),
        MaxBackoff = TimeSpan.FromSeconds(2),
        BackoffMultiplier = 2,
        RetryableStatusCodes = { StatusCode.Unavailable },
    },
};
using var channel = GrpcChannel.ForAddress((secure ? "https://" : "http://") + address, new GrpcChannelOptions
{
    HttpHandler = handler,
    MaxReceiveMessageSize = Largest,
    MaxSendMessageSize = Largest,
    MaxRetryBufferPerCallSize = Largest,
    ServiceConfig = new ServiceConfig { MethodConfigs = { retry } },
});

var headers = new Metadata();
if (options.TryGetValue("key", out var key)) headers.Add("authorization", $"Bearer {key}");
if (options.TryGetValue("service", out var service))
{
    headers.Add("x-ms-aml-grpc-service-route", $"/api/v1/service/{service}");
}

var tensor = new TensorProto { Dtype = DataType.DtString, TensorShape = new TensorShapeProto() };
tensor.TensorShape.Dim.Add(new TensorShapeProto.Types.Dim { Size = 1 });
tensor.StringVal.Add(ByteString.CopyFrom(File.ReadAllBytes(picture)));
var request = new PredictRequest();
request.Inputs.Add(options["input"], tensor);

var deadline = DateTime.UtcNow.AddSeconds(double.Parse(options["timeout"], CultureInfo.InvariantCulture));
var call = new PredictionService.PredictionServiceClient(channel).PredictAsync(request, headers, deadline);
PredictResponse reply;
try
{
    reply = await call;
}
catch (RpcException error)
{
    var id = "none";
    try
    {
        id = (await call.ResponseHeadersAsync).GetValue("request_id") ?? id;
    }
    catch (RpcException)
    {
        // the call did not get as far as headers
    }
    Console.Error.WriteLine($"{address} answers {error.StatusCode}: {error.Status.Detail} (request {id})");
    return 1;
}

var labels = options.TryGetValue("labels", out var file) ? File.ReadAllLines(file) : [];
var best = reply.Outputs.Values.First().FloatVal.Select((score, index) => (score, index)).OrderByDescending(x => x.score);
foreach (var (score, index) in best.Take(5))
{
    var label = index < labels.Length ? $"\t{labels[index]}" : "";
    Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{index}\t{score:F6}{label}"));
}
return 0;
